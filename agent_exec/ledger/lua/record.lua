-- Journal a step's result, append its events, create the steps that follow.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 parent of the next steps, 7 look at them again after ms,
--      8 priority from here on, 9 deadline in ms after it was to run (an earlier one stays), '' to leave it,
--      10 the step that waits for all the next ones, or '',
--      11 number of next steps, then their names, 12 '' or the JSON of the names of those that join.lua creates one by one, then
--      the number of events, then name and JSON each
-- Returns recorded | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local now = clock_ms()
local found, refusal = held(now)
if refusal then return refusal end
journal(found.step, ARGV[5])
redis.call('HSET', KEYS[1], 'priority', ARGV[8])
local ends_at_ms = found.ends_at_ms
if ARGV[9] ~= '' then
  local created_ms, runs_ms, accepted_ms = unpack(redis.call('HMGET', KEYS[1], 'created_ms', 'runs_ms', 'deadline_ms'))
  local deadline_ms = math.min((runs_ms or created_ms) + ARGV[9], tonumber(accepted_ms or math.huge))
  redis.call('HSET', KEYS[1], 'deadline_ms', deadline_ms)
  ends_at_ms = math.min(ends_at_ms, deadline_ms)
end
local count = tonumber(ARGV[11])
local later = ARGV[12 + count]
append_all(13 + count, now)
for index = 12, 11 + count do create_step(ARGV[index], ARGV[6], math.min(now + ARGV[7], ends_at_ms)) end
if later ~= '' then
  redis.call('HSET', KEYS[1], 'later:' .. ARGV[10], later)
  count = count + #cjson.decode(later)
end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[1], 'expected:' .. ARGV[10], count) end
return 'recorded'
