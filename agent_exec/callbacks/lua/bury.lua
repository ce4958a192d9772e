-- Give a callback up: it is a dead letter, listed until somebody has it sent again or its time is up.
-- KEYS 1–5 as in _callback.lua; KEYS[6] callbacks outcomes HASH
-- ARGV 1 tenant, 2 id, 3 fence, 4 fault, 5 the answer's HTTP status or '', 6 keep it for ms
-- Returns dead | gone | fenced | done
-- include: _clock.lua
-- include: _next_look.lua
-- include: _callback.lua
local now, exact = clock_ms()
local refusal = refused(ARGV[3])
if refusal then return refusal end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HINCRBY', KEYS[6], 'dead', 1)
redis.call('HSET', KEYS[1], 'last_ms', now, 'fault', ARGV[4], 'http_status', ARGV[5])
put('dead', ARGV[6], exact)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[6])
redis.call('ZADD', KEYS[4], now, id)
redis.call('PEXPIRE', KEYS[4], ARGV[6])
return 'dead'
