-- A page of a hash, without the fields and values that are larger than they may be.
-- KEYS[1] the hash. ARGV: 1 cursor of HSCAN, 2 fields to look at, 3 bytes that a field may have, 4 bytes that a value may have.
-- Returns the next cursor ('0': this was the last page), how many were left out, and field, value, ... of the others.
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
