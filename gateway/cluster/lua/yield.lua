-- Give up the lock of a load that failed, so that another tries: only if it is still this load's.
-- KEYS[1] the lock. ARGV: 1 token, 2 channel, 3 notice. Returns 1 if it was.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
