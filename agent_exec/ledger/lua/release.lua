-- Hand a step back unharmed, as if it had not been claimed: a worker that shuts down.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence
-- Returns released | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local now = clock_ms()
local found, refusal = held(now)
if refusal then return refusal end
local fields = found.step
fields.state, fields.attempts = 'queued', math.max(0, fields.attempts - 1)
put_back(fields, now)
return 'released'
