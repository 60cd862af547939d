-- Give a topic a new epoch, because its stream lost messages and is assigning the same offsets again.
-- KEYS[1] the meta. ARGV: 1 the broken epoch, 2 the new epoch, 3 smallest TTL of the meta in ms.
-- Returns the current epoch: the new one, the one of another node that was faster, or '' if the meta is gone.
local meta = redis.pcall('HMGET', KEYS[1], 'epoch', 'top')
if not (meta[1] and meta[2]) then return '' end
-- Always a write, so that a following WAIT also covers the change by another node.
local epoch = meta[1] == ARGV[1] and ARGV[2] or meta[1]
redis.call('HSET', KEYS[1], 'epoch', epoch)
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return epoch
