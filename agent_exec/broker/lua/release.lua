-- Put back deliveries that their worker never began. No fault of theirs: not counted against them.
-- KEYS[1] root
-- ARGV deliveries
-- Returns how many of them were current.
-- include: _keys.lua
-- include: _queue.lua
-- include: _clock.lua
-- include: _record.lua
-- include: _enqueue.lua
-- include: _settle.lua
-- include: _return.lua
local released = 0
for _, delivery in ipairs(ARGV) do released = released + give_back(delivery, 0, math.huge) end
return released
