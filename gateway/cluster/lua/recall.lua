-- The records of services, with the time of the Redis that has them: leases are compared with the clock they were made by.
-- KEYS the services' hashes. ARGV: 1 records of each to look at, 2 bytes that a record may have: of a longer one the start
-- is sent.
-- Returns the time in ms, and for each service a list of instance, record, ...
local time = redis.call('TIME')
local answer = { time[1] * 1000 + math.floor(time[2] / 1000) }
for _, key in ipairs(KEYS) do
  local found = redis.pcall('HSCAN', key, 0, 'COUNT', ARGV[1])
  local rows = {}
  if not found.err then -- else a key of another type: no records
    for at = 1, #found[2], 2 do
      if #found[2][at] <= 400 then
        rows[#rows + 1] = found[2][at]
        rows[#rows + 1] = string.sub(found[2][at + 1], 1, ARGV[2] + 1)
      end
    end
  end
  answer[#answer + 1] = rows
end
return answer
