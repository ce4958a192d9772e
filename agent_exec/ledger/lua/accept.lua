-- Store an execution with its whole input, reserve its idempotency key, append event 1, create its first step.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant's executions ZSET; KEYS[7] idempotency STRING; KEYS[8] tenant of the execution STRING;
--      KEYS[9] the tenant's queued executions ZSET; KEYS[10] the tenant HASH; KEYS[11] links STRING
-- ARGV 1 tenant, 2 execution, 3 agent, 4 task, 5 global task ('' for none), 6 message JSON, 7 digest of the request,
--      8 priority by plan, JSON, 9 deadline in ms from now (0: none yet; a child's is no later than its parent's), 10 step,
--      11 event name, 12 event JSON, 13 look at the step again after ms,
--      14 open retention in ms, 15 '' or the idempotency key's lifetime in ms, 16 at most so many queued executions,
--      17 plan of a tenant that is not known yet, 18 version of the record, 19 the caller's wish for a priority,
--      20 so many entries of the outbox are looked at, 21 prefix of an execution's key,
--      22 '' or, of a child: its parent's id, the name of the word that tells that of its end, and the agents above it,
--      23 '' or the JSON of what it is linked to, 24 '' or the URL of its callback, 25 '' or its batch's id and its index there,
--      26 when it is to run, in ms since 1970 (0: now); a deadline counts from then
-- Returns {accepted, execution id, priority} | {waiting, execution id, priority} (until it is to run) | {replayed, execution id, 0} | {mismatch, execution id, 0} | {full, execution id, queued} |
--         {orphan, execution id, 0} (its parent is not there, has ended, has to, or has had that word)
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
-- A parent knows its children before there is anything of them: what ends it ends them too.
local parent, word = string.match(ARGV[22], '^(%S+) (%S+)')
local parent_key = parent and ARGV[21] .. tenant .. ':' .. parent
local siblings, parent_ends_ms
if parent then
  local its_tenant, status, cancel_ms, ends_ms, had, open =
    unpack(redis.call('HMGET', parent_key, 'tenant', 'status', 'cancel_ms', 'deadline_ms', 'word:' .. word, 'children'))
  siblings, parent_ends_ms = open, tonumber(cancel_ms or ends_ms or math.huge)
  if its_tenant ~= tenant or is_over(status) or had or parent_ends_ms <= now then return {'orphan', execution, 0} end
end
local queued = redis.call('ZCOUNT', KEYS[9], now - ARGV[14], '+inf')
-- A child is no new work: who asks for it has begun.
if queued >= tonumber(ARGV[16]) and not parent then return {'full', execution, queued} end

-- The first write has to be one that a full Redis refuses: after any other it lets the script have its way.
redis.call('SET', KEYS[8], tenant, 'PX', ARGV[14])
redis.call('ZREMRANGEBYSCORE', KEYS[9], '-inf', now - ARGV[14])
redis.call('ZADD', KEYS[9], now, execution)
redis.call('PEXPIRE', KEYS[9], ARGV[14])
local priority = cjson.decode(ARGV[8])[redis.call('HGET', KEYS[10], 'plan') or ARGV[17]]
redis.call('HSET', KEYS[1], 'v', ARGV[18], 'tenant', tenant, 'agent', ARGV[3], 'task', ARGV[4], 'global', ARGV[5],
  'message', ARGV[6], 'digest', digest, 'priority', priority,
  'wish', ARGV[19], 'status', 'pending', 'created_ms', now)
if ARGV[24] ~= '' then redis.call('HSET', KEYS[1], 'callback', ARGV[24]) end
if ARGV[25] ~= '' then redis.call('HSET', KEYS[1], 'batch', ARGV[25]) end
if parent then
  redis.call('HSET', KEYS[1], 'parent', ARGV[22])
  redis.call('HSET', parent_key, 'children', siblings and siblings .. ' ' .. execution or execution)
end
if ARGV[23] ~= '' then
  redis.call('HSET', KEYS[1], 'linked', 1)
  redis.call('SET', KEYS[11], ARGV[23], 'PX', ARGV[14])
end
local runs_at_ms = math.max(now, tonumber(ARGV[26]))
local ends_at_ms = math.min(ARGV[9] ~= '0' and runs_at_ms + ARGV[9] or math.huge, parent_ends_ms or math.huge)
if ends_at_ms < math.huge then redis.call('HSET', KEYS[1], 'deadline_ms', ends_at_ms) end
append(ARGV[11], ARGV[12], now)
local waits = runs_at_ms > now
if waits then redis.call('HSET', KEYS[1], 'runs_ms', runs_at_ms) end
create_step(ARGV[10], '', math.min(waits and runs_at_ms or now + ARGV[13], ends_at_ms), waits and runs_at_ms or nil)
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
return {waits and 'waiting' or 'accepted', execution, priority}
