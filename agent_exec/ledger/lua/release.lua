-- Hand a step back unharmed, as if it had not been claimed: a worker that shuts down.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence
-- Returns released | gone | over | fenced | done
-- include: _ledger.lua
-- include: _held.lua
local fields, refusal = held(ARGV[1], ARGV[3], tonumber(ARGV[4]))
if refusal then return refusal end
fields.state, fields.lease_ms, fields.attempts = 'queued', 0, math.max(0, fields.attempts - 1)
write_step(ARGV[3], fields)
let_go(ARGV[3])
redis.call('ZADD', KEYS[5], clock_ms(), member(ARGV[1], ARGV[2], ARGV[3]))
return 'released'
