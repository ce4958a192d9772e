-- Change how urgent an execution is, and all below it, from here on.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant HASH; executions below are read and written under the prefix ARGV[6], which keys.py
-- spells
-- ARGV 1 tenant, 2 execution, 3 the caller's wish, 4 priority by plan, JSON, 5 plan of a tenant that is not known yet,
--      6 prefix of an execution's key
-- Returns {gone} | {completed} | {failed} | {changed, priority, hints that are queued with the old one, each as in _hint.lua…}
-- include: _state.lua
-- include: _ledger.lua
-- include: _hint.lua
local owner, status = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'status'))
if owner ~= tenant then return {'gone'} end
if is_over(status) then return {status} end
local now, priority = clock_ms(), cjson.decode(ARGV[4])[redis.call('HGET', KEYS[6], 'plan') or ARGV[5]]
local reply = {'changed', priority}

local function change(id)
  local key = ARGV[6] .. tenant .. ':' .. id
  local agent, children = unpack(redis.call('HMGET', key, 'agent', 'children'))
  if not agent then return end
  redis.call('HSET', key, 'wish', ARGV[3], 'priority', priority)
  each_step(key, function(step)
    local found = standing(key, tenant, step, now)
    if found.state == 'queued' then reply[#reply + 1] = hint(tenant, id, agent, priority, step, found.step) end
  end)
  for child in string.gmatch(children or '', '%S+') do change(child) end
end

change(execution)
return reply
