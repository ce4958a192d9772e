-- Take the steps whose time has come, and look at each again later: retries due, leases expired, hints lost; and those that nobody
-- runs though their execution has to end, whose end waits for no queue.
-- KEYS[1] pending ZSET; execution HASHes are read under the prefix ARGV[4], which keys.py spells
-- ARGV 1 at most so many, 2 look at a step again after ms, 3 and at one that is looked at often after so many at most,
--      4 prefix of an execution's key
-- Returns {ms until the next is due, or -1 for none; then for each step its hint, as in _hint.lua, or {tenant, execution, step}
--         where the execution has to end}
-- include: _state.lua
-- include: _hint.lua
local SENT = {queued = true, due = true, expired = true}
local now = clock_ms()
local reply = {-1}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local tenant, execution, step = string.match(entry, '^(%S+) (%S+) (%S+)$')
  local key = ARGV[4] .. tenant .. ':' .. execution
  local found = standing(key, tenant, step, now)
  local fields, state = found and found.step, found and found.state
  if state == 'running' then
    redis.call('ZADD', KEYS[1], fields.lease_ms, entry)
  elseif state == 'waiting' or state == 'awaiting' then
    redis.call('ZADD', KEYS[1], math.min(fields.due_ms, found.ends_at_ms), entry)
  elseif not SENT[state] then
    redis.call('ZREM', KEYS[1], entry)
  elseif found.ends_at_ms <= now then
    redis.call('ZADD', KEYS[1], now + ARGV[2], entry)
    reply[#reply + 1] = {tenant, execution, step}
  else
    -- Whoever takes a hint to send it may die before it has; and where it waits in a long queue, sending it again is in vain.
    local agent, priority = unpack(redis.call('HMGET', key, 'agent', 'priority'))
    local again_ms = math.min(ARGV[2] * 2 ^ (fields.looks or 0), ARGV[3])
    fields.looks = (fields.looks or 0) + 1
    redis.call('HSET', key, 'step:' .. step, cjson.encode(fields))
    redis.call('ZADD', KEYS[1], math.min(now + again_ms, found.ends_at_ms), entry)
    reply[#reply + 1] = hint(tenant, execution, agent, priority, step, fields)
  end
end
local nearest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if nearest[2] then reply[1] = math.max(0, nearest[2] - now) end
return reply
