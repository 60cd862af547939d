-- Who has how many connections, over all living nodes: write what changed on this one, renew its lease, and say for
-- which newcomers there is room.
-- KEYS[1] the index of nodes; KEYS[2] this node's counts; KEYS[3..] those of the others it knows.
-- ARGV: 1 node id, 2 lease in ms, 3 1: drop its counts first, 4 connections a user may have, 5 an address (0: any number),
-- 6 how many other nodes, 7 how many counts; then the others' ids, in the order of KEYS; the counts as (who, connections);
-- the newcomers as (user, address), each '' if it is not to be counted.
-- Returns {0} and for each newcomer 0: let in and counted, 1: the user, 2: the address has no room; or
-- {1} if the lease is gone: nothing was done, all counts must be written; or {2, ids..}: the living others, at most 1,000, of
-- whom some were not among KEYS, and nothing was done. Keys of another type are replaced, counts that are no numbers are 0.
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
  local id = rows[row] -- what is no node's id is left out
  if tonumber(rows[row + 1]) > now and #id <= 100 and string.find(id, '^[%w_.%-]+$') and #living < 1000 then
    living[#living + 1] = rows[row]
    unknown = unknown or not known[rows[row]]
  end
end
if 2 * #living < #rows then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now) end
if unknown then return { 2, unpack(living) } end

if fresh then
  redis.call('UNLINK', KEYS[2])
  redis.call('HSET', KEYS[2], '', 0) -- so that a node without clients has a lease too
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
redis.call('PEXPIRE', KEYS[1], 86400000) -- a day: the index outlives all leases in it, and not the cluster

-- What a dead node held is not there: its key has gone with its lease.
local function full(who, limit)
  if who == '' or limit == 0 then return false end
  local held = 0
  for key = 2, #KEYS do
    local count = redis.pcall('HGET', KEYS[key], who)
    count = type(count) ~= 'table' and tonumber(count or 0) or 0
    if count > 0 and count < 2 ^ 31 then held = held + count end
  end
  return held >= limit
end
local function count(who)
  if who == '' then return end
  local counted = redis.pcall('HINCRBY', KEYS[2], who, 1)
  if type(counted) == 'table' then redis.call('HSET', KEYS[2], who, 1) end -- it was no number
end
local answers = { 0 }
for newcomer = at, #ARGV, 2 do
  local user, address = ARGV[newcomer], ARGV[newcomer + 1]
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
