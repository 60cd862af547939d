-- Write one instance's record of a service, unless a newer one is there.
-- KEYS[1] the service's hash. ARGV: 1 instance, 2 version, or 0: Redis gives one, 3 the record, a JSON object with at least
-- one member, 4 lease in ms, 5 ms that a record is kept beyond its lease, 6 records at most, 7 channel to tell it on, or '',
-- 8 the notice up to the record.
-- A version of Redis' is its time in us, or one more than the last: it only grows, even over a flushed Redis.
-- Returns 1 and the version; 0 and the version that is there, if that is newer; -1 and their number, if there are too many.
local function decoded(text)
  if #text > 65536 then return {} end -- no record is larger
  local ok, record = pcall(cjson.decode, text)
  return ok and type(record) == 'table' and record or {}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version = tonumber(ARGV[2])
local before = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(before) == 'table' then -- a key of another type: another program wrote it
  redis.call('UNLINK', KEYS[1])
  before = false
end
if before then
  local last = tonumber(decoded(before).version) or 0
  if not (last < 2 ^ 53) then last = 0 end -- no version is larger
  if version == 0 then
    version = math.max(last + 1, time[1] * 1000000 + time[2])
  elseif version < last then
    return { 0, string.format('%.0f', last) }
  end
else
  -- Five times as many as there may be are looked at, however many another program has written.
  local rows = redis.call('HSCAN', KEYS[1], 0, 'COUNT', 5 * ARGV[6])[2]
  for at = 1, #rows, 2 do
    local ends = tonumber(decoded(rows[at + 1]).leaseEnds) or 0
    if not (ends + ARGV[5] >= now) then redis.call('HDEL', KEYS[1], rows[at]) end
  end
  local number = redis.call('HLEN', KEYS[1])
  if number >= tonumber(ARGV[6]) then return { -1, tostring(number) } end
  if version == 0 then version = time[1] * 1000000 + time[2] end
end
version = string.format('%.0f', version)
local ends = string.format('%.0f', now + ARGV[4])
local text = string.sub(ARGV[3], 1, -2) .. ',"version":' .. version .. ',"leaseEnds":' .. ends .. '}'
redis.call('HSET', KEYS[1], ARGV[1], text)
-- Half an hour or so longer than it must: so a renewal seldom has to write the TTL.
local kept = ARGV[4] + ARGV[5]
if redis.call('PTTL', KEYS[1]) < kept then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', kept + ARGV[5] / 2)) end
if ARGV[7] ~= '' then redis.call('PUBLISH', ARGV[7], ARGV[8] .. text .. '}') end
return { 1, version }
