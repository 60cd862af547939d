-- Remove people of a node whose lease has ended from some of its topics, and announce that they left, in one step.
-- KEYS[1] the node's hash; KEYS[2] its topics; KEYS[3..] its people, a key for each of these topics.
-- ARGV: 1 and 2 the message before and behind the ids, then for each of KEYS[3..]: topic, its channel or '' (do not
-- announce), how many clients follow, their ids: plain characters, so that they can stand in JSON as they are.
-- A topic without people left is taken out of KEYS[2]. The caller bounds the numbers of topics and ids.
-- Returns 1; or 0 if the lease lives and nothing was done.
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
