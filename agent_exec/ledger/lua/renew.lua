-- Renew the leases of steps that one worker runs, and say which of them must stop.
-- KEYS[1] pending ZSET; KEYS[2…] an execution HASH a step
-- ARGV 1 lease in ms; then four a step: tenant, execution, step, fence
-- Returns a list, a verdict a step: held | cancelled | lost
-- include: _state.lua
local now = clock_ms()
local verdicts = {}
for index = 2, #KEYS do
  local tenant, execution, step, fence = unpack(ARGV, index * 4 - 6, index * 4 - 3)
  local found = standing(KEYS[index], tenant, step, now)
  local runs = found and (found.state == 'running' or found.state == 'expired') and found.step.fence == tonumber(fence)
  if runs then
    found.step.lease_ms = now + ARGV[1]
    redis.call('HSET', KEYS[index], 'step:' .. step, cjson.encode(found.step))
    redis.call('ZADD', KEYS[1], found.step.lease_ms, member(tenant, execution, step))
  end
  verdicts[#verdicts + 1] = not runs and 'lost' or found.cancelled and 'cancelled' or 'held'
end
return verdicts
