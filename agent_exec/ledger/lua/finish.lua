-- End an execution: journal the last step, append its events and the one terminal event, publish the response.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] responses STREAM; KEYS[7] Celery's result STRING; KEYS[8] tenant of the execution STRING
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 status, 7 response JSON, 8 Celery's result JSON,
--      9 retention in ms, 10 number of events (the terminal one is the last), then name and JSON each
-- Returns finished | gone | over | fenced | done
-- include: _ledger.lua
-- include: _held.lua
local tenant, execution, step = ARGV[1], ARGV[2], ARGV[3]
local fields, refusal = held(tenant, step, tonumber(ARGV[4]))
if refusal then return refusal end
local now = clock_ms()
journal(tenant, execution, step, fields, ARGV[5])
append_all(tenant, execution, 10, now)
redis.call('HSET', KEYS[1], 'status', ARGV[6], 'finished_ms', now, 'response', ARGV[7])
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local open = string.match(field, '^step:(.*)$')
  if open then redis.call('ZREM', KEYS[5], member(tenant, execution, open)) end
end
redis.call('XADD', KEYS[6], '1-0', 'response', ARGV[7])
redis.call('SET', KEYS[7], ARGV[8])
redis.call('PUBLISH', KEYS[7], ARGV[8])
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[6], KEYS[7], KEYS[8]}) do redis.call('PEXPIRE', key, ARGV[9]) end
return 'finished'
