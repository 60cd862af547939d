-- Take or renew the lease of a singleton.
-- KEYS[1] the lease; KEYS[2] the newest token. ARGV: 1 instance, 2 the token that it holds, or 0, 3 lease in ms.
-- A new token is Redis' time in us, or one more than the last token, so it grows even after Redis was flushed.
-- Returns { token, end of the lease in ms, '' } if the instance has the lease; otherwise { 0, ms until the lease ends,
-- the instance that has it }.
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
-- An instance may hold the lease under a token that it never received, because the answer was lost: it gets a new one.
local left = holder and redis.call('PTTL', KEYS[1]) or 0
-- A lease without a holder or a TTL, or longer than a day, was written by another program: replace it.
if holder and holder ~= ARGV[1] and left > 0 and left <= 86400000 then
  return { '0', left, string.sub(holder, 1, 200) }
end
local token = time[1] * 1000000 + time[2]
local newest = tonumber(get(KEYS[2]) or 0) or 0
if token <= newest and newest < 2 ^ 53 then token = newest + 1 end
token = string.format('%.0f', token)
-- Kept for 30 days, after which the clock of Redis has passed it.
redis.call('SET', KEYS[2], token, 'PX', 2592000000)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[3])
return { token, now + ARGV[3], '' }
