-- Delete the remaining keys of a node whose lease has ended, after the reaper has removed its presence rows.
-- KEYS[1] the lease; KEYS[2] the node's clients; KEYS[3] its topics.
-- Returns the number of deleted keys and of deleted clients; nothing if the lease is valid.
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local clients = redis.call('TYPE', KEYS[2]).ok == 'hash' and redis.call('HLEN', KEYS[2]) or 0
return { redis.call('UNLINK', KEYS[2], KEYS[3]), clients }
