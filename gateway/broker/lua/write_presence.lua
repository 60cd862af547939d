-- Write one node's presence rows of a topic if its lease is valid, and notify the other nodes, in one step.
-- KEYS[1] the lease of the node; KEYS[2] its presence rows of the topic; KEYS[3] its topics, by which the reaper finds
-- KEYS[2].
-- ARGV: 1 topic, 2 '1': delete all rows first, 3 TTL of KEYS[2] in ms, 4 channel, or '' to publish nothing, 5 the
-- message, 6 number of (client, info) pairs, the pairs, then clients to remove.
-- Replaces a key of another type. The caller limits the rows, because Lua's `unpack` takes at most about 8,000 values.
-- Returns 1; 0 if the lease is gone and nothing was done.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function is_hash(key) return redis.call('TYPE', key).ok == 'hash' end
if ARGV[2] == '1' or not is_hash(KEYS[2]) then redis.call('UNLINK', KEYS[2]) end
local last = 6 + 2 * ARGV[6]
if last > 6 then redis.call('HSET', KEYS[2], unpack(ARGV, 7, last)) end
if #ARGV > last then redis.call('HDEL', KEYS[2], unpack(ARGV, last + 1)) end
local people = redis.call('HLEN', KEYS[2])
if people > 0 then
  if not is_hash(KEYS[3]) then redis.call('UNLINK', KEYS[3]) end
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  redis.call('HSETNX', KEYS[3], ARGV[1], people)
end
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1
