-- Write some of a node's rows, but only under its living lease: rows without one would be nobody's to remove.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics.
-- ARGV[1] 1: drop all rows first. ARGV[2..5] how many follow of: clients to set (id, row), clients to drop,
-- topics to set (name, count), topics to drop.
-- Returns 1, or 0 if the lease is gone and nothing was written.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
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
return 1
