-- The life of this Redis: another text whenever it may have lost keys since. A restart changes its run id, a fail-over its
-- replication id, and its counters tell of keys that were dropped by command or for lack of memory.
-- KEYS[1] any key of the server that is meant. It is not read.
local parts = {
  { 'server', 'run_id:(%w+)' }, { 'replication', 'master_replid:(%w+)' }, { 'stats', 'evicted_keys:(%d+)' },
  { 'commandstats', 'cmdstat_flushall:calls=(%d+)' }, { 'commandstats', 'cmdstat_flushdb:calls=(%d+)' },
  { 'commandstats', 'cmdstat_swapdb:calls=(%d+)' },
}
local sections, found = {}, {}
for _, part in ipairs(parts) do
  sections[part[1]] = sections[part[1]] or redis.call('INFO', part[1])
  found[#found + 1] = string.match(sections[part[1]], part[2]) or '0'
end
return table.concat(found, ' ')
