-- Claim a step: hand out a fence and a lease, and what the step needs to know.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] the tenant's queued executions ZSET
-- ARGV 1 tenant, 2 execution, 3 step, 4 lease in ms, 5 worker, 6 what this claim calls itself, 7 name of the restarted event,
--      8 newest version of a record that is known, 9 how many fields of the execution are wanted (0: all but the steps' own), then
--      their names
-- Returns {gone} | {newer} | {over} | {done} | {busy} | {early} |
--         {claimed, now_ms, fence, attempt, retries, parent, note, the word that the step last awaited or nil, fields of the execution and their values…}
-- include: _state.lua
-- include: _ledger.lua
local REFUSED = {absent = 'gone', over = 'over', done = 'done', running = 'busy', waiting = 'early', awaiting = 'early'}
local step, now = ARGV[3], clock_ms()
local found = standing(KEYS[1], tenant, step, now)
if not found then return {'gone'} end
if found.version > tonumber(ARGV[8]) then return {'newer'} end
local fields, state = found.step, found.state
-- The reply to this very claim was lost: it is told again what it got.
local again = (state == 'running' or state == 'expired') and fields.claim == ARGV[6]
if REFUSED[state] and not again then return {REFUSED[state]} end

if not again then
  fields.fence, fields.claim, fields.worker, fields.looks = fields.fence + 1, ARGV[6], ARGV[5], nil
  fields.attempts = state == 'due' and 1 or fields.attempts + 1
  if redis.call('HDEL', KEYS[1], 'pieces:' .. step) == 1 then
    append(ARGV[7], cjson.encode({step = step, attempt = fields.fence}), now)
  end
end
fields.state, fields.lease_ms = 'running', now + ARGV[4]
write_step(step, fields)
redis.call('HSET', KEYS[1], 'hold:' .. step, fields.fence)
look_at(step, fields.lease_ms)
if found.status == 'pending' then
  redis.call('HSET', KEYS[1], 'status', 'processing', 'started_ms', now)
  redis.call('ZREM', KEYS[6], execution)
end

local word = fields.awaited and redis.call('HGET', KEYS[1], 'word:' .. fields.awaited)
local reply =
  {'claimed', now, fields.fence, fields.attempts, fields.retries, fields.parent, fields.note or '', word or false}
local function bring(name, value)
  reply[#reply + 1], reply[#reply + 2] = name, value
end
local wanted = tonumber(ARGV[9])
if wanted > 0 then
  local values = redis.call('HMGET', KEYS[1], unpack(ARGV, 10, 9 + wanted))
  for index = 1, wanted do
    if values[index] then bring(ARGV[9 + index], values[index]) end
  end
else
  local all = redis.call('HGETALL', KEYS[1])
  for index = 1, #all, 2 do
    local name = all[index]
    if not string.find(name, ':', 1, true) or string.sub(name, 1, 7) == 'result:' then bring(name, all[index + 1]) end
  end
end
return reply
