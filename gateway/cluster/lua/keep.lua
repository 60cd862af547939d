-- Keep the last value of a topic without history, and publish it.
-- KEYS[1] the snapshot. ARGV: 1 channel, 2 header of the envelope, 3 text of the message, 4 singleton that says it, or '',
-- 5 its fencing token, 6 end of its lease in ms, in Redis' own time, 7 PUBLISH, or SPUBLISH on a cluster, 8 ms to keep it.
-- The version is Redis' time in us, or one more than the last: it only grows, even over a flushed Redis.
-- Returns the version; or { newest token } if the singleton's lease has ended or a newer token was here: nothing is done.
local time = redis.call('TIME')
local last = redis.pcall('HGET', KEYS[1], 'v')
if type(last) == 'table' then -- a key of another type: another program wrote it
  redis.call('UNLINK', KEYS[1])
  last = false
end
if ARGV[4] ~= '' then
  local newest = tonumber(redis.call('HGET', KEYS[1], 'fence:' .. ARGV[4]) or 0) or 0
  if tonumber(ARGV[5]) < newest or time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[6]) then
    return { string.format('%.0f', newest) }
  end
  redis.call('HSET', KEYS[1], 'fence:' .. ARGV[4], ARGV[5])
end
local version = time[1] * 1000000 + time[2]
last = tonumber(last or 0) or 0
if version <= last and last < 2 ^ 53 then version = last + 1 end -- a larger one is none of ours
version = string.format('%.0f', version)
redis.call('HSET', KEYS[1], 'v', version, 'm', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call(ARGV[7], ARGV[1], ARGV[2] .. ' ' .. version .. '\n' .. ARGV[3])
return version
