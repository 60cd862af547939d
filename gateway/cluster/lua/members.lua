-- A page of a sorted set, without the members that are longer than they may be.
-- KEYS[1] the set. ARGV: 1 ZRANGE or ZREVRANGE, 2 and 3 the first and the last place, 4 bytes that a member may have.
-- Returns how many were looked at, and member, score, ... of those that are short enough.
local found = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'WITHSCORES')
local page = {}
for at = 1, #found, 2 do
  if #found[at] <= tonumber(ARGV[4]) then
    page[#page + 1] = found[at]
    page[#page + 1] = found[at + 1]
  end
end
return { #found / 2, page }
