-- Remove the rows of a node whose lease has ended. Atomic, so of several reapers exactly one gets the rows.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics.
-- Returns the number of clients removed, or -1 if the lease lives or there was nothing left to remove.
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
local clients = redis.call('HLEN', KEYS[2])
if redis.call('UNLINK', KEYS[2], KEYS[3]) == 0 then return -1 end
return clients
