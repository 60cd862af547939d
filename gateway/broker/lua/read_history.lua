-- Read the stream of a topic from an offset on, together with its meta. Writes nothing.
-- KEYS: 1 the stream; 2 its meta; 3 the snapshot. ARGV: 1 first offset, or '' for the newest entries, 2 largest number
-- of entries.
-- Returns epoch, top and mark of the meta ('' if missing), the entries in the format of XRANGE, and the text of the
-- snapshot if the newest entries were requested and there are none (otherwise ''). Keys of another type count as missing.
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
