-- Change how urgent an execution is, from here on.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant HASH
-- ARGV 1 tenant, 2 execution, 3 the caller's wish, 4 priority by plan, JSON, 5 plan of a tenant that is not known yet
-- Returns {gone} | {completed} | {failed} | {changed, agent, priority, and for each queued step: its name, fence, parent}
-- include: _ledger.lua
local tenant = ARGV[1]
local status, owner, agent = unpack(redis.call('HMGET', KEYS[1], 'status', 'tenant', 'agent'))
if owner ~= tenant then return {'gone'} end
if is_over(status) then return {status} end
local priority = cjson.decode(ARGV[4])[redis.call('HGET', KEYS[6], 'plan') or ARGV[5]]
redis.call('HSET', KEYS[1], 'wish', ARGV[3], 'priority', priority)
local reply = {'changed', agent, priority}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local step = string.match(field, '^step:(.*)$')
  local fields = step and read_step(step)
  if fields and fields.state == 'queued' then
    for _, value in ipairs({step, fields.fence, fields.parent}) do reply[#reply + 1] = value end
  end
end
return reply
