-- Put a step back until it is due: a failed attempt that may be tried again. Frees the worker.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 due after ms, 6 number of events, then name and JSON each
-- Returns waiting | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local now = clock_ms()
local found, refusal = held(now)
if refusal then return refusal end
local fields = found.step
fields.state, fields.due_ms, fields.retries = 'waiting', now + ARGV[5], fields.retries + 1
put_back(fields, math.min(fields.due_ms, found.ends_at_ms))
append_all(6, now)
return 'waiting'
