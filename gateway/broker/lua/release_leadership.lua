-- Release the lease of a singleton if the instance still holds it.
-- KEYS[1] the lease. ARGV: 1 instance, 2 its token.
-- Returns 1 if the lease was released.
if redis.pcall('GET', KEYS[1]) ~= ARGV[2] .. ' ' .. ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
