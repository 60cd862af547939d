-- Give a topic without messages an epoch, so that positions of its subscribers stay valid after its first message.
-- KEYS[1] the meta. ARGV: 1 the epoch, 2 ms to keep the meta.
-- Returns the current epoch: the new one, or that of another node or publisher that was faster.
local meta = redis.pcall('HMGET', KEYS[1], 'epoch', 'top')
if meta[1] and meta[2] then return meta[1] end
if meta.err then redis.call('UNLINK', KEYS[1]) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'top', '0', 'mark', '0')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return ARGV[1]
