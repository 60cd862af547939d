-- What the stream of a topic holds from an offset on, with the epoch and the top as they are at that moment.
-- KEYS[1] the stream; KEYS[2] its meta. ARGV: 1 first offset, or '' for the newest, 2 how many at most, 3 epoch to begin with if there is
-- none, 4 ms that a meta without messages lives.
-- Returns epoch, top, and the entries as XRANGE gives them.
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'top')
if not meta[1] then
  redis.call('UNLINK', KEYS[1])
  redis.call('HSET', KEYS[2], 'epoch', ARGV[3], 'top', 0)
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  return { ARGV[3], 0, {} }
end
local entries
if ARGV[1] ~= '' then
  entries = redis.call('XRANGE', KEYS[1], ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
else
  local newest_first = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[2])
  entries = {}
  for at = #newest_first, 1, -1 do entries[#entries + 1] = newest_first[at] end
end
return { meta[1], tonumber(meta[2]), entries }
