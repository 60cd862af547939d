-- Write a cached value and notify the nodes.
-- KEYS[1] the value; KEYS[2] its lock. ARGV: 1 value, 2 TTL in ms, 3 lock token of the load that produced it, or '',
-- 4 channel, 5 change notice.
-- If the load no longer holds the lock, its deadline has passed or the key was written or deleted: nothing is written.
-- Returns 1 if the value was written.
if ARGV[3] ~= '' and redis.pcall('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
