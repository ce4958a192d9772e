-- Ask for the end of an execution. Durable: a step that runs learns of it from its heartbeat; one that does not is due at once,
-- and who looks after due work ends the execution there, past every queue and cap.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution
-- Returns gone | completed | failed | requested
-- include: _state.lua
-- include: _ledger.lua
local owner, status = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'status'))
if owner ~= tenant then return 'gone' end
if is_over(status) then return status end
local now = clock_ms()
redis.call('HSETNX', KEYS[1], 'cancel_ms', now)
each_step(function(step)
  local state = standing(KEYS[1], tenant, step, now).state
  if state == 'queued' or state == 'due' then look_at(step, now) end
end)
return 'requested'
