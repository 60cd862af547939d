-- Write one instance's records of some services. A record does not replace a newer one.
-- KEYS the hashes of the services. ARGV, for each of them: 1 instance, 2 version, or 0 to let Redis assign one, 3 the
-- record, a JSON object with at least one member, 4 lease in ms, 5 ms that a record outlives its lease, 6 limit of
-- records, 7 channel for the notice, or '', 8 the notice up to the record.
-- An assigned version is Redis' time in us, or one more than the last version, so it grows even after a flush.
-- Returns for each service two values: 1 and the version; 0 and the version in Redis, if that is newer; -1 and the number
-- of records, if the limit is reached.
local function decoded(text)
  if #text > 65536 then return {} end -- no record is larger
  local ok, record = pcall(cjson.decode, text)
  return ok and type(record) == 'table' and record or {}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function tell(key, instance, version, record, lease, keep, most, channel, notice)
  version = tonumber(version)
  local before = redis.pcall('HGET', key, instance)
  if type(before) == 'table' then -- a key of another type: another program wrote it
    redis.call('UNLINK', key)
    before = false
  end
  if before then
    local last = tonumber(decoded(before).version) or 0
    if not (last < 2 ^ 53) then last = 0 end -- no version is larger
    if version == 0 then
      version = math.max(last + 1, time[1] * 1000000 + time[2])
    elseif version < last then
      return 0, string.format('%.0f', last)
    end
  else
    -- Scan at most five times the limit, even if another program has written more.
    local rows = redis.call('HSCAN', key, 0, 'COUNT', 5 * most)[2]
    for at = 1, #rows, 2 do
      local ends = tonumber(decoded(rows[at + 1]).leaseEnds) or 0
      if not (ends + keep >= now) then redis.call('HDEL', key, rows[at]) end
    end
    local number = redis.call('HLEN', key)
    if number >= tonumber(most) then return -1, tostring(number) end
    if version == 0 then version = time[1] * 1000000 + time[2] end
  end
  version = string.format('%.0f', version)
  local ends = string.format('%.0f', now + lease)
  local text = string.sub(record, 1, -2) .. ',"version":' .. version .. ',"leaseEnds":' .. ends .. '}'
  redis.call('HSET', key, instance, text)
  -- About half an hour longer than necessary, so that few renewals have to write the TTL.
  local kept = lease + keep
  if redis.call('PTTL', key) < kept then redis.call('PEXPIRE', key, string.format('%.0f', kept + keep / 2)) end
  if channel ~= '' then redis.call('PUBLISH', channel, notice .. text .. '}') end
  return 1, version
end
local answers = {}
for at, key in ipairs(KEYS) do
  answers[2 * at - 1], answers[2 * at] = tell(key, unpack(ARGV, 8 * at - 7, 8 * at))
end
return answers
