-- Put a step back until it is due: a failed attempt that may be tried again. Frees the worker.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 due after ms, 6 number of events, then name and JSON each
-- Returns waiting | gone | over | fenced | done
-- include: _ledger.lua
-- include: _held.lua
local tenant, execution, step = ARGV[1], ARGV[2], ARGV[3]
local fields, refusal = held(tenant, step, tonumber(ARGV[4]))
if refusal then return refusal end
local now = clock_ms()
fields.state, fields.lease_ms, fields.due_ms, fields.retries = 'waiting', 0, now + ARGV[5], fields.retries + 1
write_step(step, fields)
let_go(step)
redis.call('ZADD', KEYS[5], fields.due_ms, member(tenant, execution, step))
append_all(tenant, execution, 6, now)
return 'waiting'
