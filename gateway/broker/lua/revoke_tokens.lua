-- Write revocations, remove expired ones, and notify the nodes, in one step.
-- KEYS: 1 sorted set: revoked token or user -> end of the revocation; 2 sorted set: user -> tokens issued up to then are
-- revoked; 3 the version.
-- ARGV: 1 the new version, 2 limit of revocations, 3 channel, 4 and 5 the control message before and after the time, or
-- '', then name, end and issue time of each (0: a token; now: the current time of Redis). Times in seconds since 1970.
-- Returns 0 if the limit would be exceeded and nothing was written; otherwise the issue time of the last row, as text.
for key, wanted in ipairs({ 'zset', 'zset', 'string' }) do -- replace a key of another type, which another program wrote
  if redis.call('TYPE', KEYS[key]).ok ~= wanted then redis.call('UNLINK', KEYS[key]) end
end
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local moment = '0.0'
local void = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time[1], 'LIMIT', 0, 1000)
if #void > 0 then
  redis.call('ZREM', KEYS[1], unpack(void))
  redis.call('ZREM', KEYS[2], unpack(void))
end
local new = 0
for at = 6, #ARGV, 3 do
  if not redis.call('ZSCORE', KEYS[1], ARGV[at]) then new = new + 1 end
end
if redis.call('ZCARD', KEYS[1]) + new > tonumber(ARGV[2]) then return 0 end
for at = 6, #ARGV, 3 do
  -- GT: a delayed write with a smaller value changes nothing.
  redis.call('ZADD', KEYS[1], 'GT', ARGV[at + 1], ARGV[at])
  if ARGV[at + 2] ~= '0' then
    moment = ARGV[at + 2] == 'now' and now or ARGV[at + 2]
    redis.call('ZADD', KEYS[2], 'GT', moment, ARGV[at])
  end
end
redis.call('SET', KEYS[3], ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local ends = math.min(math.ceil(tonumber(last[2])), time[1] + 315360000) + 1 -- ten years: the longest time a revocation is kept
for _, key in ipairs(KEYS) do redis.call('EXPIREAT', key, string.format('%.0f', ends)) end
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4] .. moment .. ARGV[5]) end
return moment
