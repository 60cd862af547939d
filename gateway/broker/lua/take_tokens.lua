-- Take tokens from a bucket that all nodes share.
-- KEYS[1] the bucket: the time at which the tokens taken so far have been added, in seconds by the clock of Redis.
-- ARGV: 1 tokens added per second, 2 burst in seconds: the bucket holds as many tokens as are added in this time,
-- 3 tokens wanted, 4 fewest tokens to take: if fewer are there, take none; -1: take all and go into debt if necessary.
-- Returns the number of tokens taken.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local held = redis.pcall('GET', KEYS[1])
local spent = type(held) ~= 'table' and tonumber(held or 0) or 0 -- another type or not a number: a full bucket
if not (spent <= now + ARGV[2] + 1) then spent = 0 end -- no gateway goes deeper into debt: ignore the value
spent = math.max(spent, now - ARGV[2])
local granted = math.max(0, math.min(tonumber(ARGV[3]), math.floor((now - spent) * ARGV[1] + 0.000001)))
local least = tonumber(ARGV[4])
if least < 0 then granted = tonumber(ARGV[3]) end
if granted < least then return 0 end
if granted > 0 then
  spent = spent + granted / ARGV[1]
  -- The key expires when the bucket is full again.
  redis.call('SET', KEYS[1], string.format('%.6f', spent), 'PX', math.max(1, math.ceil((spent - now + ARGV[2]) * 1000)))
end
return granted
