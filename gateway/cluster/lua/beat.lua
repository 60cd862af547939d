-- Renew a node's lease, or take it.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics. ARGV[1] lease in ms; ARGV[2..] its fields and values.
-- Returns how many writes of rows this Redis has under the lease, or -1 if the lease had ended. Then the rows are dropped:
-- with the new lease other nodes would see what they held before, until they are written again.
local writes = redis.pcall('HGET', KEYS[1], 'writes')
local foreign = type(writes) == 'table' -- a key of another type: another program wrote it
if foreign then redis.call('UNLINK', KEYS[1]) end
-- A lease under which no rows were written has no such field.
local lives = type(writes) == 'string' or not foreign and redis.call('EXISTS', KEYS[1]) == 1
-- The growing write first: a Redis without memory refuses a script's first write, and no later one.
redis.call('HSET', KEYS[1], unpack(ARGV, 2)) -- ten fields
if not lives then redis.call('UNLINK', KEYS[2], KEYS[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if not lives then return -1 end
return math.min(tonumber(string.match(writes or '', '^%d+$') or 0), 2 ^ 50)
