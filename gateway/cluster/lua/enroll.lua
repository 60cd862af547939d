-- Put a node into the index until its lease ends, in Redis' own time, and tell whose has ended.
-- KEYS[1] the index of nodes. ARGV[1] node id; ARGV[2] lease in ms.
-- Returns the ids of nodes whose lease is over, candidates for the reaper; and in how many ms the next one's ends.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
local following = redis.call('ZRANGE', KEYS[1], #expired, #expired, 'WITHSCORES')
return { expired, following[2] - now }
