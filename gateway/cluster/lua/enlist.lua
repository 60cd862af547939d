-- Put a service into the index until its record may be forgotten; the index has a bound.
-- KEYS[1] the index. ARGV: 1 service, 2 lease in ms, 3 ms that a record is kept beyond its lease, 4 services at most.
-- Returns 0 if there are too many.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
redis.call('ZADD', KEYS[1], 'GT', now + ARGV[2], ARGV[1])
return 1
