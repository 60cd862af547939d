-- What the stream of a topic holds from an offset on, with its meta as it is at that moment. Nothing is written.
-- KEYS: 1 the stream; 2 its meta; 3 the last value. ARGV: 1 first offset, or '' for the newest, 2 how many at most.
-- Returns epoch, top and mark as the meta has them ('' if it has none), the entries as XRANGE gives them, and the last value
-- if it was asked for the newest and there are none ('' else). What holds another type than it should counts as missing.
local meta = redis.pcall('HMGET', KEYS[2], 'epoch', 'top', 'mark')
local entries, last = {}, ''
if ARGV[1] ~= '' then
  entries = redis.pcall('XRANGE', KEYS[1], ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
else
  local newest_first = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[2])
  for at = #newest_first, 1, -1 do entries[#entries + 1] = newest_first[at] end
  if #entries == 0 then last = redis.pcall('HGET', KEYS[3], 'm') end
end
if entries.err then entries = {} end
if type(last) ~= 'string' then last = '' end
return { meta[1] or '', meta[2] or '', meta[3] or '', entries, last }
