-- Write who is on a topic from one node, under its living lease.
-- KEYS[1] the node's hash; KEYS[2] the node's people of the topic.
-- ARGV[1] 1: drop all first; ARGV[2] how many (client, info) pairs follow; then clients to drop.
-- A key of another type is replaced. The caller bounds the rows: Lua's `unpack` has a limit of about 8,000.
-- Returns 1, or 0 if the lease is gone and nothing was written.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local type = redis.call('TYPE', KEYS[2]).ok
if ARGV[1] == '1' or type ~= 'hash' then redis.call('UNLINK', KEYS[2]) end
local last = 2 + 2 * ARGV[2]
if last > 2 then redis.call('HSET', KEYS[2], unpack(ARGV, 3, last)) end
if #ARGV > last then redis.call('HDEL', KEYS[2], unpack(ARGV, last + 1)) end
return 1
