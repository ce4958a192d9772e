-- Store an execution with its whole input, reserve its idempotency key, append event 1, create its first step.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant's executions ZSET; KEYS[7] idempotency STRING; KEYS[8] tenant of the execution STRING;
--      KEYS[9] the tenant's queued executions ZSET; KEYS[10] the tenant HASH
-- ARGV 1 tenant, 2 execution, 3 agent, 4 task, 5 global task ('' for none), 6 message JSON, 7 digest of the request,
--      8 priority by plan, JSON, 9 deadline in ms from now (0: none yet), 10 step, 11 event name, 12 event JSON, 13 look at the step again after ms,
--      14 open retention in ms, 15 '' or the idempotency key's lifetime in ms, 16 at most so many queued executions,
--      17 plan of a tenant that is not known yet, 18 version of the record, 19 the caller's wish for a priority,
--      20 so many entries of the outbox are looked at, 21 prefix of an execution's key,
--      22 '' or the parent's id and the name of the word that tells it of the end
-- Returns {accepted, execution id, priority} | {replayed, execution id, 0} | {mismatch, execution id, 0} | {full, execution id, queued}
-- include: _state.lua
-- include: _ledger.lua
local digest, now = ARGV[7], clock_ms()

-- An earlier try of the same request got this far. If no worker has begun, its hint may not have been sent: it is sent now.
local function replay(earlier, its_digest)
  if its_digest ~= digest then return {'mismatch', earlier, 0} end
  redis.call('ZADD', KEYS[5], 'XX', now, member(tenant, earlier, ARGV[10]))
  return {'replayed', earlier, 0}
end

if ARGV[15] ~= '' then
  local reserved = redis.call('GET', KEYS[7])
  if reserved then return replay(string.match(reserved, '^(%S+) (%S+)$')) end
end
local its_digest = redis.call('HGET', KEYS[1], 'digest')
if its_digest then return replay(execution, its_digest) end
-- An id stands for one execution among all tenants: Celery's result and the orchestrator's commands name no tenant.
local owner = redis.call('GET', KEYS[8])
if owner and owner ~= tenant then return {'mismatch', execution, 0} end
local queued = redis.call('ZCOUNT', KEYS[9], now - ARGV[14], '+inf')
if queued >= tonumber(ARGV[16]) then return {'full', execution, queued} end

-- The first write has to be one that a full Redis refuses: after any other it lets the script have its way.
redis.call('SET', KEYS[8], tenant, 'PX', ARGV[14])
redis.call('ZREMRANGEBYSCORE', KEYS[9], '-inf', now - ARGV[14])
redis.call('ZADD', KEYS[9], now, execution)
redis.call('PEXPIRE', KEYS[9], ARGV[14])
local priority = cjson.decode(ARGV[8])[redis.call('HGET', KEYS[10], 'plan') or ARGV[17]]
redis.call('HSET', KEYS[1], 'v', ARGV[18], 'tenant', tenant, 'agent', ARGV[3], 'task', ARGV[4], 'global', ARGV[5],
  'message', ARGV[6], 'digest', digest, 'priority', priority,
  'wish', ARGV[19], 'status', 'pending', 'created_ms', now)
if ARGV[22] ~= '' then redis.call('HSET', KEYS[1], 'parent', ARGV[22]) end
local deadline_ms = tonumber(ARGV[9])
if deadline_ms > 0 then redis.call('HSET', KEYS[1], 'deadline_ms', now + deadline_ms) end
append(ARGV[11], ARGV[12], now)
create_step(ARGV[10], '', deadline_ms > 0 and math.min(now + ARGV[13], now + deadline_ms) or now + ARGV[13])
redis.call('PEXPIRE', KEYS[1], ARGV[14])
redis.call('PEXPIRE', KEYS[2], ARGV[14])
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - ARGV[14])
redis.call('ZADD', KEYS[6], now, execution)
redis.call('PEXPIRE', KEYS[6], ARGV[14])
if ARGV[15] ~= '' then redis.call('SET', KEYS[7], execution .. ' ' .. digest, 'PX', ARGV[15]) end

-- Where no notifier runs nobody takes anything from the outbox. Each acceptance adds one entry and looks at a few, picked at random,
-- so that of executions which have expired no more are kept than a part of those that have not.
for _, entry in ipairs(redis.call('ZRANDMEMBER', KEYS[3], ARGV[20])) do
  if redis.call('EXISTS', ARGV[21] .. string.gsub(entry, ' ', ':')) == 0 then redis.call('ZREM', KEYS[3], entry) end
end
return {'accepted', execution, priority}
