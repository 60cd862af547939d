-- Read a value of the cache, or be the one who loads it.
-- KEYS[1] the value; KEYS[2] its lock. ARGV: 1 token, 2 ms the lock holds, 3 ms before its end from which a value is stale.
-- Returns the value or false, ms it is kept, 1 if the lock is now the token's, ms the lock of another holds.
local value = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if value and (left == -1 or left > tonumber(ARGV[3])) then return { value, left, 0, 0 } end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return { value, left, 1, 0 } end
return { value, left, 0, redis.call('PTTL', KEYS[2]) }
