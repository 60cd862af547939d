-- Write some of a node's rows, but only under its living lease: rows without one would be nobody's to remove.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics.
-- ARGV[1] 1: drop all rows first. ARGV[2..5] how many follow of: clients to set (id, row), clients to drop,
-- topics to set (name, count), topics to drop: at most 1,000 rows, since Lua's `unpack` has a limit of about 8,000.
-- Returns the number of this write under the lease, from 1; 0 if the lease is gone and nothing was written; -1 if another
-- program had written keys of another type: they were removed, and all rows must be written.
-- The node compares the number at each beat: a Redis that has lost its last moments has a smaller one.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end -- what another program writes there is no lease
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
