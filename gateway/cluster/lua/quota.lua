-- Take tokens from a bucket that all nodes share.
-- KEYS[1] the bucket: the moment, in seconds of Redis' time, when all that was taken will have been earned.
-- ARGV: 1 tokens earned a second, 2 how many seconds' worth may be taken at once, 3 how many are wanted, 4 the least of them
-- that is taken: if there are fewer, none is; -1: all are taken, into debt if need be.
-- Returns how many were taken.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local held = redis.pcall('GET', KEYS[1])
local spent = type(held) ~= 'table' and tonumber(held or 0) or 0 -- of another type, or no number: a full bucket
if not (spent <= now + ARGV[2] + 1) then spent = 0 end -- a debt is at most a full bucket: no gateway wrote it
spent = math.max(spent, now - ARGV[2])
local granted = math.max(0, math.min(tonumber(ARGV[3]), math.floor((now - spent) * ARGV[1] + 0.000001)))
local least = tonumber(ARGV[4])
if least < 0 then granted = tonumber(ARGV[3]) end
if granted < least then return 0 end
if granted > 0 then
  spent = spent + granted / ARGV[1]
  -- When it is full again it need not be there.
  redis.call('SET', KEYS[1], string.format('%.6f', spent), 'PX', math.max(1, math.ceil((spent - now + ARGV[2]) * 1000)))
end
return granted
