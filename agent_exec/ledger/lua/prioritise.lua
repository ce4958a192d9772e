-- Change how urgent an execution is, from here on.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant HASH
-- ARGV 1 tenant, 2 execution, 3 the caller's wish, 4 priority by plan, JSON, 5 plan of a tenant that is not known yet
-- Returns {gone} | {completed} | {failed} | {changed, priority, hints that are queued with the old one, each as in _hint.lua…}
-- include: _state.lua
-- include: _ledger.lua
-- include: _hint.lua
local owner, status, agent = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'status', 'agent'))
if owner ~= tenant then return {'gone'} end
if is_over(status) then return {status} end
local now, priority = clock_ms(), cjson.decode(ARGV[4])[redis.call('HGET', KEYS[6], 'plan') or ARGV[5]]
redis.call('HSET', KEYS[1], 'wish', ARGV[3], 'priority', priority)
local reply = {'changed', priority}
each_step(function(step)
  local found = standing(KEYS[1], tenant, step, now)
  if found.state == 'queued' then reply[#reply + 1] = hint(tenant, execution, agent, priority, step, found.step) end
end)
return reply
