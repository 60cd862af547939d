-- Publish a message of a topic that stores none, once for an idempotency key.
-- KEYS[1] the answer to the key. ARGV: 1 channel, 2 message, 3 ms that the key is valid, 4 PUBLISH, or SPUBLISH on a
-- cluster.
-- Returns 1 if the key was used before and nothing was published, otherwise 0.
if redis.call('HSET', KEYS[1], 'published', '1') == 0 then return 1 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call(ARGV[4], ARGV[1], ARGV[2])
return 0
