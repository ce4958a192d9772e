-- End an execution: journal the last step, append its events and the one terminal event, publish the response, and send its parent,
-- if it has one, the word that it has ended: its own id.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] responses STREAM; KEYS[7] Celery's result STRING; KEYS[8] tenant of the execution STRING
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 status, 7 response JSON, 8 Celery's result JSON,
--      9 retention in ms, 10 1 if this is the end that a cancel asks for, else 0,
--      11 prefix of an execution's key, 12 number of events (the terminal one is the last), then name and JSON each
-- Returns finished | cancelled (another end was asked for meanwhile: nothing is written) | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
-- include: _word.lua
local now = clock_ms()
local found, refusal = held(now)
if refusal then return refusal end
if found.cancelled and ARGV[10] == '0' then return 'cancelled' end
journal(found.step, ARGV[5])
append_all(12, now)
redis.call('HSET', KEYS[1], 'status', ARGV[6], 'finished_ms', now, 'response', ARGV[7])
each_step(function(open)
  redis.call('ZREM', KEYS[5], member(tenant, execution, open))
  redis.call('HDEL', KEYS[1], 'hold:' .. open)
end)
redis.call('XADD', KEYS[6], '1-0', 'response', ARGV[7])
redis.call('SET', KEYS[7], ARGV[8])
redis.call('PUBLISH', KEYS[7], ARGV[8])
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[6], KEYS[7], KEYS[8]}) do redis.call('PEXPIRE', key, ARGV[9]) end
local parent = redis.call('HGET', KEYS[1], 'parent')
if parent then
  local id, name = string.match(parent, '^(%S+) (%S+)$')
  send_word(ARGV[11] .. tenant .. ':' .. id, KEYS[5], tenant, id, name, execution, true, now)
end
return 'finished'
