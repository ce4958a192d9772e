-- Note that a receiver has a callback: its body goes, and how it stands is kept for a while.
-- KEYS 1–5 as in _callback.lua; KEYS[6] callbacks outcomes HASH
-- ARGV 1 tenant, 2 id, 3 fence, 4 the answer's HTTP status, 5 keep it for ms
-- Returns delivered | gone | fenced | done
-- include: _clock.lua
-- include: _next_look.lua
-- include: _callback.lua
local now, exact = clock_ms()
local refusal = refused(ARGV[3])
if refusal then return refusal end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HINCRBY', KEYS[6], 'delivered', 1)
redis.call('HSET', KEYS[1], 'last_ms', now, 'fault', '', 'http_status', ARGV[4])
redis.call('HDEL', KEYS[1], 'body')
put('delivered', ARGV[5], exact)
return 'delivered'
