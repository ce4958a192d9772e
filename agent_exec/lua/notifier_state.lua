-- Read how the notifier stands, and how long the oldest event has waited that was not sent.
-- KEYS[1] notifier's lease STRING; KEYS[2] its report STRING; KEYS[3] outbox ZSET; KEYS[4] unacked ZSET;
--      execution HASHes and streaming STREAMs are read under the prefixes that keys.py spells
-- ARGV 1 look at so many executions, those that have waited longest, 2 prefix of an execution's key, 3 prefix of its stream's
-- Returns {1 where a notifier is active, else 0; its report, or the last one's, or ''; executions with events not sent; executions
--          with events not acknowledged; how long the oldest event has waited, in ms}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local oldest = now
for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, ARGV[1] - 1)) do
  local tenant, execution = string.match(member, '^(%S+) (%S+)$')
  local notified = redis.call('HGET', ARGV[2] .. tenant .. ':' .. execution, 'notified') or 0
  local first = redis.call('XRANGE', ARGV[3] .. tenant .. ':' .. execution, string.format('(%d-0', notified), '+', 'COUNT', 1)[1]
  if first then oldest = math.min(oldest, tonumber(first[2][4])) end -- event, <name>, at_ms, <ms>, data, <JSON>
end
return {redis.call('EXISTS', KEYS[1]), redis.call('GET', KEYS[2]) or '', redis.call('ZCARD', KEYS[3]),
  redis.call('ZCARD', KEYS[4]), now - oldest}
