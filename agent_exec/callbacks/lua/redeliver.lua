-- Have a callback sent now: a dead one with all its tries anew, one that waits ahead of its time.
-- KEYS 1–5 as in _callback.lua; KEYS[6] callbacks wake LIST
-- ARGV 1 tenant, 2 id, 3 keep it for ms
-- Returns waiting | sending (it is on its way) | delivered (it has arrived) | gone
-- include: _clock.lua
-- include: _next_look.lua
-- include: _callback.lua
local now, exact = clock_ms()
local owner, state = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'state'))
if owner ~= tenant then return 'gone' end
if state == 'sending' or state == 'delivered' then return state end
if state == 'dead' then
  redis.call('HSET', KEYS[1], 'attempts', 0)
  redis.call('ZREM', KEYS[4], id)
end
put('waiting', ARGV[3], exact, now)
if redis.call('LLEN', KEYS[6]) == 0 then redis.call('LPUSH', KEYS[6], '1') end
return 'waiting'
