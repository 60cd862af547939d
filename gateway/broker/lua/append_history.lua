-- Number, store and publish a message in one step, so that the order in the stream is the order on the channel.
-- KEYS: 1 the stream; 2 its meta (epoch, top, mark); 3 the answer to the idempotency key, or the meta again; 4 the
-- snapshot of a topic that has one, or the meta again.
-- ARGV: 1 channel, 2 header of the envelope, 3 body of the message, 4 messages to keep,
-- 5 ms to keep them, 6 now in ms, 7 epoch for a new numbering, 8 idempotency key or '', 9 ms that the key is valid,
-- 10 client that does not receive the message, or '', 11 singleton that publishes it, or '', 12 its fencing token,
-- 13 end of its lease in ms by the clock of Redis, 14 PUBLISH, or SPUBLISH on a cluster, 15 ms to keep the meta
-- and the snapshot after the last message, 16 bytes to keep, counting 64 per message beyond its body.
-- Returns epoch, offset, mark, and 1 if the idempotency key was used before and nothing was published;
-- or { newest token } if the lease has ended or a newer token exists: then nothing was published either.

-- The value of a whole number that this script wrote and Lua represents exactly; nil for anything else.
local function whole(text, most)
  if type(text) == 'string' and #text <= 16 and not string.find(text, '%D') then
    local number = tonumber(text)
    if number and number < most then return number end
  end
end

local function is_epoch(text) return text and string.find(text, '^%w+$') and #text <= 64 end

-- Write fields of a hash. A key of another type is replaced: another program wrote it.
local function set(key, ...)
  if type(redis.pcall('HSET', key, ...)) == 'table' then
    redis.call('UNLINK', key)
    redis.call('HSET', key, ...)
  end
end

local function written(number) return string.format('%d', number) end

local time = redis.call('TIME')
if ARGV[11] ~= '' then
  local newest = whole(redis.pcall('HGET', KEYS[2], 'fence:' .. ARGV[11]), 2 ^ 53) or 0
  if tonumber(ARGV[12]) < newest or time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[13]) then
    return { written(newest) }
  end
end
if ARGV[8] ~= '' then
  local first = redis.pcall('HMGET', KEYS[3], 'epoch', 'offset', 'mark')
  local offset, mark = whole(first[2], 1e15), whole(first[3] or '0', 9e15)
  if is_epoch(first[1]) and offset and mark then
    -- A write, so that a following WAIT also covers the first message, which may have come by another connection.
    redis.call('PEXPIRE', KEYS[3], ARGV[9])
    return { first[1], offset, written(mark), 1 }
  end
end

local meta = redis.pcall('HMGET', KEYS[2], 'epoch', 'top', 'mark', 'bytes', 'floor')
local epoch, top, last = meta[1], whole(meta[2], 1e14), whole(meta[3] or '0', 9e15)
-- bytes: size of all messages that were ever added. floor: the same up to the oldest message in the stream, as of the
-- last check.
local bytes, floor = whole(meta[4] or '0', 9e15) or 0, whole(meta[5] or '0', 9e15) or 0
if not (is_epoch(epoch) and top and last) then
  -- The meta is missing or broken: start a new numbering.
  if meta.err then redis.call('UNLINK', KEYS[2]) end
  -- The write that needs memory comes first: a Redis without memory rejects only the first write of a script.
  redis.call('HSET', KEYS[2], 'epoch', ARGV[7])
  redis.call('UNLINK', KEYS[1])
  epoch, top, last, bytes, floor = ARGV[7], 0, 0, 0, 0
end
-- The mark distinguishes this message from any other with the same offset in another numbering: Redis' time in us, or
-- one more than the last mark if the clock has not moved on.
local mark = math.max(time[1] * 1000000 + time[2], last + 1)
local mark_text = written(mark) -- each number is written once, because that costs as much as a part of a command
local offset, offset_text, last_text, bytes_text
local function add()
  offset, bytes = top + 1, bytes + #ARGV[3] + 64
  offset_text, last_text, bytes_text = written(offset), written(last), written(bytes)
  return redis.pcall('XADD', KEYS[1], offset_text .. '-0', 't', ARGV[6], 'm', ARGV[3], 'x', ARGV[10], 'k', mark_text,
    'p', last_text, 'c', bytes_text)
end
local added = add()
if type(added) == 'table' and added.err and (string.find(added.err, 'WRONGTYPE') or string.find(added.err, 'The ID')) then
  -- The key is not a stream, or the stream is ahead of its meta: start a new numbering.
  redis.call('UNLINK', KEYS[1])
  epoch, top, last, bytes, floor = ARGV[7], 0, 0, 0, 0
  added = add()
end
if type(added) == 'table' and added.err then return redis.error_reply(added.err) end
if bytes - floor > tonumber(ARGV[16]) then
  -- The stream may be over its limit. Read the oldest messages, one, two, four at a time, up to the first that stays.
  -- A message removes about as many bytes as it adds, so this costs no more than adding it.
  local from, number, stays = '-', 1, nil
  while not stays do
    local oldest = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', number)
    if #oldest == 0 then break end
    for _, entry in ipairs(oldest) do
      local counted, size = 0, 0 -- version 0.1.0 wrote no count
      for at = 1, #entry[2], 2 do
        if entry[2][at] == 'c' then counted = whole(entry[2][at + 1], 9e15) or 0 end
        if entry[2][at] == 'm' then size = #entry[2][at + 1] + 64 end
      end
      floor = math.max(0, counted - size)
      if bytes - floor <= tonumber(ARGV[16]) then
        stays = entry[1]
        break
      end
    end
    from, number = '(' .. oldest[#oldest][1], 2 * number
  end
  if stays then redis.call('XTRIM', KEYS[1], 'MINID', stays) end
end
redis.call('HSET', KEYS[2], 'epoch', epoch, 'top', offset_text, 'mark', mark_text, 'bytes', bytes_text,
  'floor', written(floor))
if ARGV[11] ~= '' then redis.call('HSET', KEYS[2], 'fence:' .. ARGV[11], ARGV[12]) end
-- Trim to the number of messages now and then, because that costs as much for many as for one: the stream has at most 31
-- messages, and an eighth, more than it keeps.
if offset % math.max(1, math.min(32, math.floor(ARGV[4] / 8))) == 0 then redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[4]) end
if offset % 32 == 1 then
  -- Remove the oldest expired messages one by one, up to twice as many as were added since the last time.
  for _ = 1, 64 do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    if not oldest or (tonumber(oldest[2][2]) or 0) >= ARGV[6] - ARGV[5] then break end
    redis.call('XDEL', KEYS[1], oldest[1])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
-- The meta outlives the messages, so that a client that was away longer learns that it missed some.
redis.call('PEXPIRE', KEYS[2], ARGV[15])
if KEYS[4] ~= KEYS[2] then
  set(KEYS[4], 'v', mark_text, 'm', ARGV[3])
  redis.call('PEXPIRE', KEYS[4], ARGV[15])
end
if ARGV[8] ~= '' then
  set(KEYS[3], 'epoch', epoch, 'offset', offset_text, 'mark', mark_text)
  redis.call('PEXPIRE', KEYS[3], ARGV[9])
end
redis.call(ARGV[14], ARGV[1], table.concat({ ARGV[2], epoch, offset_text, mark_text, last_text }, ' ') .. '\n' .. ARGV[3])
return { epoch, offset, mark_text, 0 }
