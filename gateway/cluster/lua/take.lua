-- Read a value of the cache, or be the one who loads it.
-- KEYS[1] the value; KEYS[2] its lock. ARGV: 1 token, 2 ms the lock holds, 3 ms before its end from which a value is stale,
-- 4 bytes that a value may have. A value that is longer, or of another type, counts as absent; so does a lock without an end.
-- Returns the value or false, ms it is kept, 1 if the lock is now the token's, ms the lock of another holds.
local size = redis.pcall('STRLEN', KEYS[1])
local value = type(size) == 'number' and size > 0 and size <= tonumber(ARGV[4]) and redis.call('GET', KEYS[1])
local left = value and redis.call('PTTL', KEYS[1]) or -2
if value and (left == -1 or left > tonumber(ARGV[3])) then return { value, left, 0, 0 } end
local held = redis.call('PTTL', KEYS[2])
if held > 0 then return { value, left, 0, held } end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return { value, left, 1, 0 }
