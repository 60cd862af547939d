-- The last value of a topic.
-- KEYS[1] the snapshot. ARGV[1] bytes that the text may have.
-- Returns version and text; nothing if the text is longer.
if redis.call('HSTRLEN', KEYS[1], 'm') > tonumber(ARGV[1]) then return {} end
return redis.call('HMGET', KEYS[1], 'v', 'm')
