-- Ask for the end of an execution. Durable: whoever claims or runs a step of it next ends it.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution
-- Returns {gone} | {completed} | {failed} | {requested, agent, and for each step that is not running: its name, attempts, parent}
-- include: _ledger.lua
local tenant, execution = ARGV[1], ARGV[2]
local status, owner, agent = unpack(redis.call('HMGET', KEYS[1], 'status', 'tenant', 'agent'))
if owner ~= tenant then return {'gone'} end
if is_over(status) then return {status} end
local now = clock_ms()
redis.call('HSETNX', KEYS[1], 'cancel_ms', now)
local reply = {'requested', agent}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local step = string.match(field, '^step:(.*)$')
  local fields = step and read_step(step)
  if fields and (fields.state == 'queued' or fields.state == 'waiting') then
    for _, value in ipairs({step, fields.fence, fields.parent}) do reply[#reply + 1] = value end
  end
end
return reply
