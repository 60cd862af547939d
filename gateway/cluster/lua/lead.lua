-- Take or renew the lease of a singleton.
-- KEYS[1] the lease; KEYS[2] the newest token. ARGV: 1 instance, 2 the token it holds, or 0, 3 lease in ms.
-- A new token is Redis' time in us, or one more than the last: it only grows, even over a flushed Redis.
-- Returns token, end of the lease in ms, '' if it is the instance's; or 0, ms until the lease ends, who has it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function get(key) -- a key of another type counts as absent; SET replaces it
  local value = redis.pcall('GET', key)
  return type(value) ~= 'table' and value
end
local held = get(KEYS[1])
if held and held == ARGV[2] .. ' ' .. ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return { ARGV[2], now + ARGV[3], '' }
end
local holder = held and string.match(held, '^%d+ (.*)$')
-- One that holds it under a token that it does not know was not answered when it took it: it gets another.
local left = holder and redis.call('PTTL', KEYS[1]) or 0
-- A lease without a holder or an end, or of more than a day, was written by another program: it is taken.
if holder and holder ~= ARGV[1] and left > 0 and left <= 86400000 then
  return { '0', left, string.sub(holder, 1, 200) }
end
local token = time[1] * 1000000 + time[2]
local newest = tonumber(get(KEYS[2]) or 0) or 0
if token <= newest and newest < 2 ^ 53 then token = newest + 1 end
token = string.format('%.0f', token)
-- For 30 days: then Redis' own time has grown beyond it.
redis.call('SET', KEYS[2], token, 'PX', 2592000000)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[3])
return { token, now + ARGV[3], '' }
