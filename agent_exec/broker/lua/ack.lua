-- Forget deliveries that are done.
-- KEYS[1] root
-- ARGV deliveries
-- Returns how many of them were current; the others had been settled or had lapsed.
-- include: _keys.lua
-- include: _queue.lua
-- include: _settle.lua
local settled = 0
for _, delivery in ipairs(ARGV) do settled = settled + settle(delivery) end
return settled
