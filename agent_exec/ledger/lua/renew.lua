-- Renew the leases of steps that one worker runs, and say which of them must stop.
-- KEYS[1] pending ZSET; KEYS[2…] an execution HASH a step
-- ARGV 1 lease in ms; then four a step: tenant, execution, step, fence
-- Returns a list, a verdict a step: held | cancelled | lost
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local verdicts = {}
for index = 2, #KEYS do
  local at = 2 + (index - 2) * 4
  local tenant, execution, step, fence = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local packed, cancel_ms = unpack(redis.call('HMGET', KEYS[index], 'step:' .. step, 'cancel_ms'))
  local fields = packed and cjson.decode(packed)
  if not fields or fields.state ~= 'running' or fields.fence ~= fence then
    verdicts[#verdicts + 1] = 'lost'
  else
    fields.lease_ms = now + ARGV[1]
    redis.call('HSET', KEYS[index], 'step:' .. step, cjson.encode(fields))
    redis.call('ZADD', KEYS[1], fields.lease_ms, tenant .. ' ' .. execution .. ' ' .. step)
    verdicts[#verdicts + 1] = cancel_ms and 'cancelled' or 'held'
  end
end
return verdicts
