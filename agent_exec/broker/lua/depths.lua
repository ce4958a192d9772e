-- How much waits and is in flight, for operators.
-- KEYS[1] root
-- ARGV families
-- Returns {waiting, in flight, parked, plain}: three flat lists of node and count (parked: node and start), and for
-- each family the number of its plain messages that no worker has seen.
-- include: _keys.lua
-- include: _queue.lua
-- include: _plain.lua
local parked, plain_counts = {}, {}
for index, family in ipairs(ARGV) do
  for _, item in ipairs(call('HGETALL', PARKED .. family)) do parked[#parked + 1] = item end
  plain_counts[index] = unseen(family)
end
return {call('HGETALL', WAITING), call('HGETALL', IN_FLIGHT), parked, plain_counts}
