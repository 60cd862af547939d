-- Give a topic a new epoch, because its stream went back: offsets already given are being given again.
-- KEYS[1] the meta. ARGV: 1 the epoch that was found to be broken, 2 the new one.
-- Returns the epoch that holds now: the new one, or that of whoever was quicker.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and epoch ~= ARGV[1] then return epoch end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
return ARGV[2]
