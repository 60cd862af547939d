-- Add services to the index until their records expire. The size of the index is limited.
-- KEYS[1] the index. ARGV: 1 ms that a record outlives its lease, 2 limit of services, 3 TTL of the index in ms, then
-- for each service its name and the lease in ms.
-- Returns for each service 1, or 0 if the limit is reached.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local names = {}
for at = 4, #ARGV, 2 do names[#names + 1] = ARGV[at] end
if #names == 0 then return {} end
local known = redis.pcall('ZMSCORE', KEYS[1], unpack(names)) -- `States.write` limits their number
if known.err then -- a key of another type: another program wrote it
  redis.call('UNLINK', KEYS[1])
  known = {}
end
local number -- of services in the index; read, after expired ones are removed, only if a service is new
local listed, scores = {}, {}
local new = {} -- name -> 1 or 0: a service may occur several times, once for each of its instances
for at, name in ipairs(names) do
  listed[at] = new[name] or 1
  if not known[at] and not new[name] then
    if not number then
      redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
      number = redis.call('ZCARD', KEYS[1])
    end
    number = number + 1
    if number > tonumber(ARGV[2]) then listed[at] = 0 end
    new[name] = listed[at]
  end
  if listed[at] == 1 then
    scores[#scores + 1] = now + ARGV[3 + 2 * at]
    scores[#scores + 1] = name
  end
end
if #scores > 0 then
  redis.call('ZADD', KEYS[1], 'GT', unpack(scores))
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return listed
