-- Keep a value of the cache, and tell the nodes.
-- KEYS[1] the value; KEYS[2] its lock. ARGV: 1 value, 2 ms to keep it, 3 token of the load that it comes from, or '',
-- 4 channel, 5 notice.
-- A load whose lock is gone was overtaken: by its deadline, or by a newer value or a delete. Then nothing is kept.
-- Returns 1 if it is kept.
if ARGV[3] ~= '' and redis.pcall('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
