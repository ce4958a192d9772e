-- Forget deliveries that are done.
-- KEYS[1] root
-- ARGV deliveries
-- Returns how many of them were current; the others had been settled or had lapsed.
-- include: _keys.lua
-- include: _queue.lua
local settled = 0
for _, delivery in ipairs(ARGV) do
  local tag = unlease(delivery)
  if tag then
    forget(tag)
    settled = settled + 1
  end
end
return settled
