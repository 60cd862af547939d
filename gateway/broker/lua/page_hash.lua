-- Read a page of a hash, without fields and values that are too large.
-- KEYS[1] the hash. ARGV: 1 cursor of HSCAN, 2 fields to scan, 3 largest size of a field, 4 of a value, in bytes.
-- Returns the next cursor ('0' after the last page), the number of fields left out, and field, value, ... of the others.
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local page, left_out = {}, 0
for at = 1, #found[2], 2 do
  if #found[2][at] <= tonumber(ARGV[3]) and #found[2][at + 1] <= tonumber(ARGV[4]) then
    page[#page + 1] = found[2][at]
    page[#page + 1] = found[2][at + 1]
  else
    left_out = left_out + 1
  end
end
return { found[1], left_out, page }
