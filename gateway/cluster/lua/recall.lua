-- All records of a service, with the time of the Redis that has them: leases are compared with the clock they were made by.
-- KEYS[1] the service's hash.
-- Returns the time in ms, and instance, record, …
local time = redis.call('TIME')
return { time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]) }
