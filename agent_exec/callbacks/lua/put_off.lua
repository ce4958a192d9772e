-- Note that a try failed, and when the next one is due.
-- KEYS 1–5 as in _callback.lua; KEYS[6] callbacks outcomes HASH
-- ARGV 1 tenant, 2 id, 3 fence, 4 fault, 5 the answer's HTTP status or '', 6 due in ms, 7 keep it for ms
-- Returns waiting | gone | fenced | done
-- include: _clock.lua
-- include: _next_look.lua
-- include: _callback.lua
local now, exact = clock_ms()
local refusal = refused(ARGV[3])
if refusal then return refusal end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HINCRBY', KEYS[6], 'put_off', 1)
redis.call('HSET', KEYS[1], 'last_ms', now, 'fault', ARGV[4], 'http_status', ARGV[5])
put('waiting', ARGV[7], exact, now + ARGV[6])
return 'waiting'
