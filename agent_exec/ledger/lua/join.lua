-- Journal one of several steps that another one waits for; the last of them creates that one.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 parent of the next step, 7 look at it again after ms,
--      8 the step that waits, 9 number of events, then name and JSON each
-- Returns waiting (others are still to come) | joined (the waiting step was created) | gone | over | fenced | done
-- include: _ledger.lua
-- include: _held.lua
local tenant, execution, step, target = ARGV[1], ARGV[2], ARGV[3], ARGV[8]
local fields, refusal = held(tenant, step, tonumber(ARGV[4]))
if refusal then return refusal end
local now = clock_ms()
journal(tenant, execution, step, fields, ARGV[5])
append_all(tenant, execution, 9, now)
local joined = redis.call('HINCRBY', KEYS[1], 'joined:' .. target, 1)
if joined < tonumber(redis.call('HGET', KEYS[1], 'expected:' .. target)) then return 'waiting' end
create_step(tenant, execution, target, ARGV[6], now + ARGV[7])
return 'joined'
