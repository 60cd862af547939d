-- The life of this Redis server: a text that changes whenever the server may have lost keys. A restart changes the run
-- id, a failover changes the replication id, and counters show keys that were flushed by a command or evicted.
-- KEYS[1] any key of the server; it selects the server and is not read.
-- Returns the text.
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
