-- The meta of a topic that some node has open. It must not expire under that node's subscribers, and nor must the last
-- value: where less than half of their life is left, they get all of it again.
-- KEYS: 1 the meta; 2 the last value. ARGV[1] their life in ms.
-- Returns epoch, top and mark ('' for what there is not).
local meta = redis.pcall('HMGET', KEYS[1], 'epoch', 'top', 'mark')
if meta.err or not meta[1] then return { '', '', '' } end
if redis.call('PTTL', KEYS[1]) * 2 < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return { meta[1], meta[2] or '', meta[3] or '' }
