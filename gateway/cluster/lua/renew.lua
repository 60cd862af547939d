-- Give a topic a new epoch, because its stream lost messages: offsets already given are being given again.
-- KEYS[1] the meta. ARGV: 1 the epoch that was found to be broken, 2 the new one, 3 ms that the meta lives at least.
-- Returns the epoch that holds now: the new one, that of another node that was quicker, or '' if there is no meta any more.
local meta = redis.pcall('HMGET', KEYS[1], 'epoch', 'top')
if not (meta[1] and meta[2]) then return '' end
-- Always a write, so that WAIT behind it covers the renewal by another node too.
local epoch = meta[1] == ARGV[1] and ARGV[2] or meta[1]
redis.call('HSET', KEYS[1], 'epoch', epoch)
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return epoch
