-- Extend the leases of deliveries that their worker still holds.
-- KEYS[1] root
-- ARGV lease_ms, deliveries
-- Returns those that it holds no more: settled, or lapsed while it could not renew.
-- include: _keys.lua
-- include: _queue.lua
-- include: _clock.lua
local until_ms, lost = math.floor(now_us() / 1000) + tonumber(ARGV[1]), {}
for index = 2, #ARGV do
  if call('ZSCORE', LEASE, ARGV[index]) then call('ZADD', LEASE, until_ms, ARGV[index])
  else lost[#lost + 1] = ARGV[index] end
end
return lost
