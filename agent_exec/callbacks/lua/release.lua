-- Hand a callback back whose try was broken off: another sends it now, and no try is counted.
-- KEYS 1–5 as in _callback.lua
-- ARGV 1 tenant, 2 id, 3 fence, 4 keep it for ms
-- Returns waiting | gone | fenced | done
-- include: _clock.lua
-- include: _next_look.lua
-- include: _callback.lua
local now, exact = clock_ms()
local refusal = refused(ARGV[3])
if refusal then return refusal end
put('waiting', ARGV[4], exact, now)
return 'waiting'
