-- Number a message, keep it, publish it: one step, so the order in the stream is the order on the wire.
-- KEYS[1] the stream; KEYS[2] its meta (epoch, top); KEYS[3] what the idempotency key was answered, or the meta again.
-- ARGV: 1 channel, 2 header of the envelope, 3 text of the message (a JSON object), 4 messages to keep,
-- 5 ms to keep them, 6 now in ms, 7 epoch to begin with if there is none, 8 idempotency key or '', 9 ms it is good for,
-- 10 client who is not to be sent it, or '', 11 singleton that says it, or '', 12 its fencing token, 13 end of its lease in
-- ms, in Redis' own time, 14 PUBLISH, or SPUBLISH on a cluster.
-- Returns epoch, offset, and 1 if the idempotency key had been answered before (then nothing was published);
-- or { newest token } if the singleton's lease has ended or a newer token was here: then nothing was published either.
if ARGV[11] ~= '' then
  local time = redis.call('TIME')
  local newest = tonumber(redis.call('HGET', KEYS[2], 'fence:' .. ARGV[11]) or 0)
  if tonumber(ARGV[12]) < newest or time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[13]) then
    return { string.format('%.0f', newest) }
  end
  redis.call('HSET', KEYS[2], 'fence:' .. ARGV[11], ARGV[12])
end
if ARGV[8] ~= '' then
  local first = redis.call('HMGET', KEYS[3], 'epoch', 'offset')
  if first[1] then
    -- A write, so that WAIT behind it covers the first answer's message too, whichever connection that came by.
    redis.call('PEXPIRE', KEYS[3], ARGV[9])
    return { first[1], tonumber(first[2]), 1 }
  end
end
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if not epoch then
  epoch = ARGV[7]
  redis.call('UNLINK', KEYS[1])
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'top', 0)
end
local offset = redis.call('HINCRBY', KEYS[2], 'top', 1)
local text = string.sub(ARGV[3], 1, -2) .. ',"offset":' .. offset .. ',"epoch":"' .. epoch .. '"}'
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[4], offset .. '-0', 't', ARGV[6], 'm', text, 'x', ARGV[10])
-- The oldest that are past their time go too; a few at a time, more than come in.
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 4)) do
  if tonumber(entry[2][2]) >= ARGV[6] - ARGV[5] then break end
  redis.call('XDEL', KEYS[1], entry[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
-- The numbering outlives the messages, so that whoever was away longer is told so.
redis.call('PEXPIRE', KEYS[2], ARGV[5] + 86400000)
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[3], 'epoch', epoch, 'offset', offset)
  redis.call('PEXPIRE', KEYS[3], ARGV[9])
end
redis.call(ARGV[14], ARGV[1], ARGV[2] .. ' ' .. epoch .. ' ' .. offset .. '\n' .. text)
return { epoch, offset, 0 }
