-- Read the snapshot of a topic.
-- KEYS[1] the snapshot. ARGV[1] largest size of the body in bytes.
-- Returns version and body; nothing if the body is longer.
if redis.call('HSTRLEN', KEYS[1], 'm') > tonumber(ARGV[1]) then return {} end
return redis.call('HMGET', KEYS[1], 'v', 'm')
