-- Renew a node's lease, or take it.
-- KEYS[1] the node's hash. ARGV[1] lease in ms; ARGV[2..] its fields and values.
-- Returns 1 if the lease was alive: then its rows are still right. 0: they may have been reaped.
local alive = redis.call('EXISTS', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return alive
