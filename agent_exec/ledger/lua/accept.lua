-- Store an execution with its whole input, reserve its idempotency key, append event 1, create its first step.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant's executions ZSET; KEYS[7] idempotency STRING; KEYS[8] tenant of the execution STRING
-- ARGV 1 tenant, 2 execution, 3 agent, 4 task, 5 global task ('' for none), 6 message JSON, 7 digest of the request,
--      8 priority, 9 deadline in ms from now (0: none yet), 10 step, 11 event name, 12 event JSON, 13 look at the step again after ms,
--      14 open retention in ms, 15 '' or the idempotency key's lifetime in ms
-- Returns {accepted|replayed, execution id, created_ms} or {mismatch, execution id, 0}
-- include: _ledger.lua
local tenant, execution, digest = ARGV[1], ARGV[2], ARGV[7]
local now = clock_ms()
if ARGV[15] ~= '' then
  local reserved = redis.call('GET', KEYS[7])
  if reserved then
    local earlier, its_digest = string.match(reserved, '^(%S+) (%S+)$')
    return {its_digest == digest and 'replayed' or 'mismatch', earlier, 0}
  end
end
local its_digest, created_ms = unpack(redis.call('HMGET', KEYS[1], 'digest', 'created_ms'))
if its_digest then
  return {its_digest == digest and 'replayed' or 'mismatch', execution, tonumber(created_ms)}
end
-- An id stands for one execution among all tenants: Celery's result and the orchestrator's commands name no tenant.
local owner = redis.call('GET', KEYS[8])
if owner and owner ~= tenant then return {'mismatch', execution, 0} end
redis.call('SET', KEYS[8], tenant, 'PX', ARGV[14])

redis.call('HSET', KEYS[1], 'v', 1, 'tenant', tenant, 'agent', ARGV[3], 'task', ARGV[4], 'global', ARGV[5],
  'message', ARGV[6], 'digest', digest, 'priority', ARGV[8], 'status', 'pending', 'created_ms', now)
local deadline_ms = tonumber(ARGV[9])
if deadline_ms > 0 then redis.call('HSET', KEYS[1], 'deadline_ms', now + deadline_ms) end
append(tenant, execution, ARGV[11], ARGV[12], now)
create_step(tenant, execution, ARGV[10], '', now + ARGV[13])
redis.call('PEXPIRE', KEYS[1], ARGV[14])
redis.call('PEXPIRE', KEYS[2], ARGV[14])
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - ARGV[14])
redis.call('ZADD', KEYS[6], now, execution)
redis.call('PEXPIRE', KEYS[6], ARGV[14])
if ARGV[15] ~= '' then redis.call('SET', KEYS[7], execution .. ' ' .. digest, 'PX', ARGV[15]) end
return {'accepted', execution, now}
