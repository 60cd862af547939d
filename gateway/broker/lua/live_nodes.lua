-- List the nodes with a valid lease.
-- KEYS[1] the index of nodes. ARGV[1] largest number of nodes.
-- Returns their ids, those whose lease ends last first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = {}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. now, 'LIMIT', 0, ARGV[1])) do
  if #id <= 100 then ids[#ids + 1] = id end -- a longer one is not a node id
end
return ids
