-- The head of an answer is there: what it tells of the limits, and that the provider is well.
-- KEYS 1–8 as in _lane.lua
-- ARGV 1 the call's ticket, 2–7 told limits as `learn` in _lane.lua takes them
-- Returns 1
-- include: _lane.lua
-- include: _breaker.lua
local now = now_ms()
local lane = read_lane(now)
local told = {}
for index = 2, 7 do told[#told + 1] = tonumber(ARGV[index]) end
learn(lane, told, now)
write_lane(lane)
for index = 5, 6 do judge_probe(KEYS[index], ARGV[1], 'answered', now) end
return 1
