-- Journal one of several steps that another one waits for; the last of them creates that one.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 parent of the next step, 7 look at it again after ms,
--      8 the step that waits, 9 number of events, then name and JSON each
-- Returns waiting (others are still to come) | joined (the waiting step was created) | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local now, target = clock_ms(), ARGV[8]
local found, refusal = held(now)
if refusal then return refusal end
journal(found.step, ARGV[5])
append_all(9, now)
local joined = redis.call('HINCRBY', KEYS[1], 'joined:' .. target, 1)
if joined < tonumber(redis.call('HGET', KEYS[1], 'expected:' .. target)) then return 'waiting' end
redis.call('HDEL', KEYS[1], 'joined:' .. target, 'expected:' .. target)
create_step(target, ARGV[6], math.min(now + ARGV[7], found.ends_at_ms))
return 'joined'
