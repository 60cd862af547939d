-- Read the records of services with the time of Redis, which is the clock of their leases.
-- KEYS the hashes of the services. ARGV: 1 records to read of each, 2 largest size of a record in bytes: a longer one is
-- cut after one byte more.
-- Returns the time in ms, and for each service a list of instance, record, ...
local time = redis.call('TIME')
local answer = { time[1] * 1000 + math.floor(time[2] / 1000) }
for _, key in ipairs(KEYS) do
  local found = redis.pcall('HSCAN', key, 0, 'COUNT', ARGV[1])
  local rows = {}
  if not found.err then -- otherwise the key has another type: no records
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
