-- Remove what is left of a node whose lease has ended, once its topics are reaped.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics.
-- Returns how many keys and how many clients were removed; or nothing if the lease lives.
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local clients = redis.call('TYPE', KEYS[2]).ok == 'hash' and redis.call('HLEN', KEYS[2]) or 0
return { redis.call('UNLINK', KEYS[2], KEYS[3]), clients }
