-- Delete a cached value and its lock, so that a load in progress cannot write an older value, and notify the nodes.
-- KEYS[1] the value; KEYS[2] its lock. ARGV: 1 channel, 2 change notice. Returns 1 if there was a value.
local found = redis.call('UNLINK', KEYS[1])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return found
