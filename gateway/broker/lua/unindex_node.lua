-- Remove a node from the index, unless it has renewed its lease meanwhile.
-- KEYS[1] the index of nodes. ARGV[1] node id.
-- Returns 1 if it was removed.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not deadline or tonumber(deadline) > now then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
