-- Read a page of a sorted set, without members that are too long.
-- KEYS[1] the set. ARGV: 1 ZRANGE or ZREVRANGE, 2 and 3 the first and the last rank, 4 largest size of a member in bytes.
-- Returns the number of members read, and member, score, ... of those that are short enough.
local found = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'WITHSCORES')
local page = {}
for at = 1, #found, 2 do
  if #found[at] <= tonumber(ARGV[4]) then
    page[#page + 1] = found[at]
    page[#page + 1] = found[at + 1]
  end
end
return { #found / 2, page }
