-- Keep the last value of a topic without history, and publish it.
-- KEYS[1] the snapshot. ARGV: 1 channel, 2 header of the envelope, 3 text of the message.
-- The version is Redis' time in us, or one more than the last: it only grows, even over a flushed Redis.
local time = redis.call('TIME')
local version = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('HGET', KEYS[1], 'v') or 0)
if version <= last then version = last + 1 end
version = string.format('%.0f', version)
redis.call('HSET', KEYS[1], 'v', version, 'm', ARGV[3])
redis.call('PUBLISH', ARGV[1], ARGV[2] .. ' - ' .. version .. '\n' .. ARGV[3])
return version
