-- Connection limits per user and address over all living nodes: write the changed counts of this node, renew their TTL,
-- and admit or reject new connections.
-- KEYS[1] the index of nodes; KEYS[2] this node's counts; KEYS[3..] the counts of the other nodes that it knows.
-- ARGV: 1 node id, 2 lease in ms, 3 '1': delete its counts first, 4 limit per user, 5 limit per address (0: no limit),
-- 6 number of other nodes, 7 number of counts; then the ids of the other nodes, in the order of KEYS; the counts as
-- (user or address, connections); the new connections as (user, address), each '' if it is not counted.
-- Returns {0} and for each new connection 0: admitted and counted, 1: the user, 2: the address is at its limit;
-- {1} if the counts have expired: nothing was done, and the node must write all counts;
-- {2, ids..} if living nodes are missing among KEYS: nothing was done; the ids are all living nodes, at most 1,000.
-- Replaces keys of another type. Counts that are not numbers are 0.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fresh = ARGV[3] == '1'
if not fresh and (redis.call('TYPE', KEYS[2]).ok ~= 'hash' or redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0) then return { 1 } end

local at = 8
local known = { [ARGV[1]] = true }
for _ = 1, tonumber(ARGV[6]) do
  known[ARGV[at]] = true
  at = at + 1
end
local rows = redis.pcall('ZREVRANGE', KEYS[1], 0, 1999, 'WITHSCORES')
if rows.err then
  redis.call('UNLINK', KEYS[1])
  rows = {}
end
local living, unknown = {}, false
for row = 1, #rows, 2 do
  local id = rows[row] -- skip what is not a node id
  if tonumber(rows[row + 1]) > now and #id <= 100 and string.find(id, '^[%w_.%-]+$') and #living < 1000 then
    living[#living + 1] = rows[row]
    unknown = unknown or not known[rows[row]]
  end
end
if 2 * #living < #rows then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now) end
if unknown then return { 2, unpack(living) } end

if fresh then
  redis.call('UNLINK', KEYS[2])
  redis.call('HSET', KEYS[2], '', 0) -- so that the key exists for a node without clients too
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
for _ = 1, tonumber(ARGV[7]) do
  if ARGV[at + 1] == '0' then
    redis.call('HDEL', KEYS[2], ARGV[at])
  else
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
  at = at + 2
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], 86400000) -- a day: longer than every lease in the index

-- The counts of a dead node are gone: its key has expired.
local function full(name, limit)
  if name == '' or limit == 0 then return false end
  local held = 0
  for key = 2, #KEYS do
    local count = redis.pcall('HGET', KEYS[key], name)
    count = type(count) ~= 'table' and tonumber(count or 0) or 0
    if count > 0 and count < 2 ^ 31 then held = held + count end
  end
  return held >= limit
end
local function count(name)
  if name == '' then return end
  local counted = redis.pcall('HINCRBY', KEYS[2], name, 1)
  if type(counted) == 'table' then redis.call('HSET', KEYS[2], name, 1) end -- it was not a number
end
local answers = { 0 }
for connection = at, #ARGV, 2 do
  local user, address = ARGV[connection], ARGV[connection + 1]
  if full(user, tonumber(ARGV[4])) then
    answers[#answers + 1] = 1
  elseif full(address, tonumber(ARGV[5])) then
    answers[#answers + 1] = 2
  else
    count(user)
    count(address)
    answers[#answers + 1] = 0
  end
end
return answers
