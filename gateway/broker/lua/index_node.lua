-- Add a node to the index until its lease ends by the clock of Redis, and list nodes whose lease has ended.
-- KEYS[1] the index of nodes. ARGV: 1 node id, 2 lease in ms, 3 largest number of ended nodes to list.
-- Replaces an index of another type: every living node adds itself to the new one at its next heartbeat.
-- Returns the ids of nodes whose lease has ended, and the ms until the next lease ends.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local added = redis.pcall('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if type(added) == 'table' and added.err then
  if not string.find(added.err, 'WRONGTYPE', 1, true) then return added end
  redis.call('UNLINK', KEYS[1])
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
end
-- Rows are sorted by the end of the lease, so ended ones come first. The next call lists those beyond the limit.
local rows, ended = redis.call('ZRANGE', KEYS[1], 0, ARGV[3], 'WITHSCORES'), {}
for row = 1, #rows, 2 do
  local left = tonumber(rows[row + 1]) - now
  if left > 0 then return { ended, math.min(left, tonumber(ARGV[2])) } end
  if #ended < tonumber(ARGV[3]) then ended[#ended + 1] = rows[row] end
end
return { ended, math.min(1000, tonumber(ARGV[2])) }
