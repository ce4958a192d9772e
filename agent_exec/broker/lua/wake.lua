-- Pass on a wake-up that its receiver has no room for.
-- KEYS[1] root
-- ARGV family
-- Returns 1 where there is work to wake somebody for, else 0.
-- include: _keys.lua
-- include: _queue.lua
-- include: _plain.lua
local family = ARGV[1]
if not (plain_waits(family, variants(family)) or fair_waits(family)) then return 0 end
wake(family)
return 1
