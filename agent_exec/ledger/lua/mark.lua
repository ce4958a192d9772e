-- Note something with a running step, before it does what may be done once: the note comes back with its claims until it waits.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 note
-- Returns marked | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local found, refusal = held(clock_ms())
if refusal then return refusal end
found.step.note = ARGV[5]
write_step(step, found.step)
return 'marked'
