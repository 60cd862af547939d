-- Renew a node's lease, or take it.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics. ARGV[1] lease in ms; ARGV[2..] its fields and values.
-- Returns 1 if the lease was alive: then its rows are still right. 0: they are gone. What they held until the lease ended
-- would be seen again with the new one, until it is written anew: ghosts.
local alive = redis.call('EXISTS', KEYS[1])
if alive == 0 then redis.call('UNLINK', KEYS[2], KEYS[3]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return alive
