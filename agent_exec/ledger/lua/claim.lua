-- Claim a step: hand out a fence and a lease, and all that the step needs to know.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant's queued executions ZSET
-- ARGV 1 tenant, 2 execution, 3 step, 4 lease in ms, 5 worker, 6 name of the restarted event
-- Returns {gone} | {over} | {done} | {busy} | {early} | {claimed, now_ms, fence, attempt, retries, parent, fields of the execution…}
-- include: _ledger.lua
local tenant, execution, step = ARGV[1], ARGV[2], ARGV[3]
local status, owner = unpack(redis.call('HMGET', KEYS[1], 'status', 'tenant'))
if owner ~= tenant then return {'gone'} end
if is_over(status) then return {'over'} end
local fields = read_step(step)
if not fields then return {'gone'} end
if fields.state == 'done' then return {'done'} end
local now = clock_ms()
if fields.state == 'running' and fields.lease_ms > now then return {'busy'} end
local cancelled = redis.call('HEXISTS', KEYS[1], 'cancel_ms') == 1
if fields.state == 'waiting' and fields.due_ms > now and not cancelled then return {'early'} end

if fields.state == 'running' or fields.state == 'queued' then fields.attempts = fields.attempts + 1 end
if fields.state == 'waiting' then fields.attempts = 1 end
fields.state, fields.fence, fields.lease_ms, fields.worker = 'running', fields.fence + 1, now + ARGV[4], ARGV[5]
if redis.call('HDEL', KEYS[1], 'pieces:' .. step) == 1 then
  append(tenant, execution, ARGV[6], cjson.encode({step = step, attempt = fields.fence}), now)
end
write_step(step, fields)
redis.call('HSET', KEYS[1], 'hold:' .. step, fields.fence)
redis.call('ZADD', KEYS[5], fields.lease_ms, member(tenant, execution, step))
if status == 'pending' then
  redis.call('HSET', KEYS[1], 'status', 'processing', 'started_ms', now)
  redis.call('ZREM', KEYS[6], execution)
end
local reply = {'claimed', now, fields.fence, fields.attempts, fields.retries, fields.parent}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all do reply[#reply + 1] = all[index] end
return reply
