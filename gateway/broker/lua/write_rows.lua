-- Write rows of a node if its lease is valid: no node would ever remove rows without a lease.
-- KEYS[1] the lease; KEYS[2] the node's clients; KEYS[3] its topics.
-- ARGV[1] '1': delete all rows first. ARGV[2..5] numbers of: clients to set (id, row), clients to remove, topics to set
-- (name, count), topics to remove; then these rows, at most 1,000, because Lua's `unpack` takes about 8,000 values.
-- Returns the number of this write under the lease, from 1; 0 if the lease is gone and nothing was written; -1 if keys
-- had another type: they were deleted, and the node must write all rows.
-- The node compares this number at each heartbeat: a Redis that lost its last writes has a smaller one.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end -- a key of another type is not a lease
for key = 2, 3 do
  local type = redis.call('TYPE', KEYS[key]).ok
  if type ~= 'hash' and type ~= 'none' then
    redis.call('UNLINK', KEYS[2], KEYS[3])
    return -1
  end
end
if ARGV[1] == '1' then redis.call('UNLINK', KEYS[2], KEYS[3]) end
local at = 6
local function each(command, key, count)
  if count > 0 then
    redis.call(command, key, unpack(ARGV, at, at + count - 1))
    at = at + count
  end
end
each('HSET', KEYS[2], 2 * ARGV[2])
each('HDEL', KEYS[2], tonumber(ARGV[3]))
each('HSET', KEYS[3], 2 * ARGV[4])
each('HDEL', KEYS[3], tonumber(ARGV[5]))
local writes = math.min(tonumber(string.match(redis.call('HGET', KEYS[1], 'writes') or '', '^%d+$') or 0), 2 ^ 50) + 1
redis.call('HSET', KEYS[1], 'writes', string.format('%.0f', writes))
return writes
