-- Read a cached value; if it is missing or stale, take the lock for loading it.
-- KEYS[1] the value; KEYS[2] its lock. ARGV: 1 token, 2 TTL of the lock in ms, 3 ms before its expiry from which a value
-- is stale, 4 largest size of a value in bytes.
-- A value that is longer or of another type counts as missing, as does a lock without a TTL.
-- Returns the value or false, its TTL in ms, 1 if the token now holds the lock, remaining ms of another process's lock.
local size = redis.pcall('STRLEN', KEYS[1])
local value = type(size) == 'number' and size > 0 and size <= tonumber(ARGV[4]) and redis.call('GET', KEYS[1])
local left = value and redis.call('PTTL', KEYS[1]) or -2
if value and (left == -1 or left > tonumber(ARGV[3])) then return { value, left, 0, 0 } end
local held = redis.call('PTTL', KEYS[2])
if held > 0 then return { value, left, 0, held } end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return { value, left, 1, 0 }
