-- Renew a node's lease, or take it.
-- KEYS[1] the node's hash; KEYS[2] its clients; KEYS[3] its topics. ARGV[1] lease in ms; ARGV[2..] its fields and values.
-- Returns how many writes of rows this Redis has under the lease, or -1 if the lease had ended. Then the rows are dropped:
-- with the new lease other nodes would see what they held before, until they are written again.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end -- another program wrote there
-- The growing write first: a Redis without memory refuses a script's first write, and no later one.
redis.call('HSET', KEYS[1], unpack(ARGV, 2)) -- ten fields
if kind ~= 'hash' then redis.call('UNLINK', KEYS[2], KEYS[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if kind ~= 'hash' then return -1 end
return math.min(tonumber(string.match(redis.call('HGET', KEYS[1], 'writes') or '', '^%d+$') or 0), 2 ^ 50)
