-- Who has how many connections, over all living nodes: write what changed on this one, renew its lease, and say for
-- which newcomers there is room.
-- KEYS[1] the index of nodes; KEYS[2] this node's counts; KEYS[3..] those of the others it knows.
-- ARGV: 1 node id, 2 lease in ms, 3 1: drop its counts first, 4 connections a user may have, 5 an address (0: any number),
-- 6 how many other nodes, 7 how many counts; then the others' ids, in the order of KEYS; the counts as (who, connections);
-- the newcomers as (user, address), each '' if it is not to be counted.
-- Returns {0} and for each newcomer 0: let in and counted, 1: the user, 2: the address has no room; or
-- {1} if the lease is gone: nothing was done, all counts must be written; or {2, ids..}: the living others, of whom
-- some were not among KEYS, and nothing was done.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fresh = ARGV[3] == '1'
if not fresh and redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then return { 1 } end

local at = 8
local known = { [ARGV[1]] = true }
for _ = 1, tonumber(ARGV[6]) do
  known[ARGV[at]] = true
  at = at + 1
end
local rows = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local living, unknown = {}, false
for row = 1, #rows, 2 do
  if tonumber(rows[row + 1]) > now then
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
  for key = 2, #KEYS do held = held + (redis.call('HGET', KEYS[key], who) or 0) end
  return held >= limit
end
local answers = { 0 }
for newcomer = at, #ARGV, 2 do
  local user, address = ARGV[newcomer], ARGV[newcomer + 1]
  if full(user, tonumber(ARGV[4])) then
    answers[#answers + 1] = 1
  elseif full(address, tonumber(ARGV[5])) then
    answers[#answers + 1] = 2
  else
    if user ~= '' then redis.call('HINCRBY', KEYS[2], user, 1) end
    if address ~= '' then redis.call('HINCRBY', KEYS[2], address, 1) end
    answers[#answers + 1] = 0
  end
end
return answers
