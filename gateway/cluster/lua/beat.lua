-- Renew a node's lease, or take it.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics. ARGV[1] lease in ms; ARGV[2..] its fields and values.
-- Returns 1 if the lease was alive: then its rows are still right. 0: they are gone. What they held until the lease ended
-- would be seen again with the new one, until it is written anew: ghosts.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end -- another program wrote there
-- The growing write first: a Redis without memory refuses a script's first write, and no later one.
redis.call('HSET', KEYS[1], unpack(ARGV, 2)) -- ten fields
if kind ~= 'hash' then redis.call('UNLINK', KEYS[2], KEYS[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return kind == 'hash' and 1 or 0
