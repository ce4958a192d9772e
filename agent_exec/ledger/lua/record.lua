-- Journal a step's result, append its events, create the steps that follow.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 parent of the next steps, 7 look at them again after ms,
--      8 priority from here on, 9 deadline in ms after creation, '' to leave it, 10 the step that waits for all the next ones, or '',
--      11 number of next steps, then their names, then the number of events, then name and JSON each
-- Returns recorded | gone | over | fenced | done
-- include: _ledger.lua
-- include: _held.lua
local tenant, execution, step = ARGV[1], ARGV[2], ARGV[3]
local fields, refusal = held(tenant, step, tonumber(ARGV[4]))
if refusal then return refusal end
local now = clock_ms()
journal(tenant, execution, step, fields, ARGV[5])
redis.call('HSET', KEYS[1], 'priority', ARGV[8])
if ARGV[9] ~= '' and redis.call('HEXISTS', KEYS[1], 'deadline_ms') == 0 then
  redis.call('HSET', KEYS[1], 'deadline_ms', redis.call('HGET', KEYS[1], 'created_ms') + ARGV[9])
end
local count = tonumber(ARGV[11])
append_all(tenant, execution, 12 + count, now)
for index = 12, 11 + count do create_step(tenant, execution, ARGV[index], ARGV[6], now + ARGV[7]) end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[1], 'expected:' .. ARGV[10], count) end
return 'recorded'
