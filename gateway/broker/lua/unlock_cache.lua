-- Release the lock of a failed load, if the token still holds it, so that another process can load the value.
-- KEYS[1] the lock. ARGV: 1 token, 2 channel, 3 change notice. Returns 1 if the lock was released.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
