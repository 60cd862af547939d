-- The ids of nodes whose lease lives, those whose lease ends last first.
-- KEYS[1] the index of nodes. ARGV[1] how many at most.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. now, 'LIMIT', 0, ARGV[1])
