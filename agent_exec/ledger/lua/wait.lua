-- Put a step back until it is due: a failed attempt that may be tried again, a deferral, or one that awaits a word from outside and
-- is due at once when that comes, or has come already. Frees the worker.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 due after ms, 6 note, 7 1 if this counts as a retry, else 0,
--      8 name of the word that it awaits ('' for none), 9 number of events, then name and JSON each
-- Returns waiting | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local now = clock_ms()
local found, refusal = held(now)
if refusal then return refusal end
local fields = found.step
fields.state, fields.due_ms, fields.retries = 'waiting', now + ARGV[5], fields.retries + ARGV[7]
fields.note = ARGV[6] ~= '' and ARGV[6] or nil
fields.awaits = ARGV[8] ~= '' and ARGV[8] or nil
if fields.awaits then
  fields.awaited = fields.awaits
  redis.call('HSET', KEYS[1], 'awaits:' .. fields.awaits, step)
  if redis.call('HEXISTS', KEYS[1], 'word:' .. fields.awaits) == 1 then fields.due_ms = now end
end
put_back(fields, math.min(fields.due_ms, found.ends_at_ms))
append_all(9, now)
return 'waiting'
