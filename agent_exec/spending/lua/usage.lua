-- Read a tenant's days, after letting lapse what has to.
-- KEYS 1–3 as in _spending.lua
-- ARGV 1 first day or '', 2 last day or '' for today, 3 how many days at most, up to the last
-- Returns {first day, last day, then for each day of which anything is known {day, its counts and their values…}}
-- include: _spending.lua
sweep()
local last = math.min(tonumber(ARGV[2]) or today, today)
local first = math.max(tonumber(ARGV[1]) or -math.huge, last - ARGV[3] + 1)
local reply = {first, last}
for day = first, last do
  local counts = redis.call('HGETALL', day_key(day))
  if #counts > 0 then reply[#reply + 1] = {day, unpack(counts)} end
end
return reply
