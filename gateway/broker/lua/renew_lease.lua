-- Renew the lease of a node, or take it if it has ended.
-- KEYS[1] the lease; KEYS[2] the node's clients; KEYS[3] its topics. ARGV[1] lease in ms; ARGV[2..] fields and values.
-- Returns the number of row writes under the lease, or -1 if the lease had ended. In that case it deletes the rows:
-- otherwise other nodes would see the old rows under the new lease until the node writes them again.
local writes = redis.pcall('HGET', KEYS[1], 'writes')
local foreign = type(writes) == 'table' -- a key of another type: another program wrote it
if foreign then redis.call('UNLINK', KEYS[1]) end
-- A lease under which no rows were written has no `writes` field.
local lives = type(writes) == 'string' or not foreign and redis.call('EXISTS', KEYS[1]) == 1
-- The write that needs memory comes first: a Redis without memory rejects only the first write of a script.
redis.call('HSET', KEYS[1], unpack(ARGV, 2)) -- ten fields
if not lives then redis.call('UNLINK', KEYS[2], KEYS[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if not lives then return -1 end
return math.min(tonumber(string.match(writes or '', '^%d+$') or 0), 2 ^ 50)
