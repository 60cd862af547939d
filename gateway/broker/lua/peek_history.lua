-- Read the meta of a topic that has subscribers. The meta and the snapshot must not expire while a node has subscribers,
-- so their TTL is renewed when less than half of it is left.
-- KEYS: 1 the meta; 2 the snapshot. ARGV: 1 their TTL in ms; 2 the same for a topic without messages.
-- Returns epoch, top and mark ('' for each that is missing).
local meta = redis.pcall('HMGET', KEYS[1], 'epoch', 'top', 'mark')
if meta.err or not meta[1] then return { '', '', '' } end
local life = meta[2] == '0' and ARGV[2] or ARGV[1]
if redis.call('PTTL', KEYS[1]) * 2 < tonumber(life) then
  redis.call('PEXPIRE', KEYS[1], life)
  redis.call('PEXPIRE', KEYS[2], life)
end
return { meta[1], meta[2] or '', meta[3] or '' }
