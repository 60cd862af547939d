-- Store the snapshot of a topic without history and publish the message.
-- KEYS: 1 the snapshot, 2 the answer to the idempotency key, if there is one. ARGV: 1 channel, 2 header of the envelope, 3 body of the message, 4 singleton that publishes it,
-- or '', 5 its fencing token, 6 end of its lease in ms by the clock of Redis, 7 PUBLISH, or SPUBLISH on a cluster, 8 ms
-- to keep the snapshot, 9 ms that the idempotency key is valid.
-- The version is Redis' time in us, or one more than the last version, so it grows even after Redis was flushed.
-- Returns the version; '0' if the idempotency key was used before; { newest token } if the lease has ended or a newer token exists, and nothing was done.
local time = redis.call('TIME')
local kind = redis.call('TYPE', KEYS[1]).ok
local function number(field) -- 0 if it is missing, or larger than any that the gateway writes
  local found = kind == 'hash' and tonumber(redis.call('HGET', KEYS[1], field) or 0) or 0
  return found < 2 ^ 53 and found or 0
end
if ARGV[4] ~= '' then
  local newest = number('fence:' .. ARGV[4])
  if tonumber(ARGV[5]) < newest or time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[6]) then
    return { string.format('%.0f', newest) }
  end
end
if KEYS[2] then
  if redis.call('HSET', KEYS[2], 'published', '1') == 0 then return '0' end
  redis.call('PEXPIRE', KEYS[2], ARGV[9])
end
local last = number('v')
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end -- another program wrote the key
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'fence:' .. ARGV[4], ARGV[5]) end
local version = time[1] * 1000000 + time[2]
version = string.format('%.0f', math.max(version, last + 1))
redis.call('HSET', KEYS[1], 'v', version, 'm', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call(ARGV[7], ARGV[1], ARGV[2] .. ' ' .. version .. '\n' .. ARGV[3])
return version
