-- Remove presence rows of a node whose lease has ended, and publish the leaves, in one step.
-- KEYS[1] the lease; KEYS[2] the node's topics; KEYS[3..] its presence rows, one key per topic.
-- ARGV: 1 and 2 the message before and after the ids, then for each of KEYS[3..]: topic, its channel or '' to publish
-- nothing, number of clients, their ids. Ids contain only characters that need no escaping in JSON.
-- A topic without rows is removed from KEYS[2]. The caller limits the numbers of topics and ids.
-- Returns 1; 0 if the lease is valid and nothing was done.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local at = 3
for key = 3, #KEYS do
  local topic, channel, number = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  at = at + 3
  local left = {}
  for _ = 1, number do
    if redis.call('HDEL', KEYS[key], ARGV[at]) == 1 then left[#left + 1] = '"' .. ARGV[at] .. '"' end
    at = at + 1
  end
  if channel ~= '' and #left > 0 then
    redis.call('PUBLISH', channel, ARGV[1] .. table.concat(left, ',') .. ARGV[2])
  end
  if redis.call('HLEN', KEYS[key]) == 0 then redis.call('HDEL', KEYS[2], topic) end
end
return 1
