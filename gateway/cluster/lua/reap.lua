-- Remove the rows of a node whose lease has ended. Atomic, so of several reapers exactly one gets the rows.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics; KEYS[4..] its people, a key a topic with presence.
-- Returns the number of clients removed, then for each of KEYS[4..] the ids of the clients that were there;
-- or nothing, if the lease lives or nothing was left to remove.
if redis.call('EXISTS', KEYS[1]) == 1 then return {} end
local found = { redis.call('HLEN', KEYS[2]) }
for at = 4, #KEYS do found[#found + 1] = redis.call('HKEYS', KEYS[at]) end
if redis.call('UNLINK', unpack(KEYS, 2)) == 0 then return {} end
return found
