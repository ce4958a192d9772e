-- Pass on a wake-up that its receiver has no room for.
-- KEYS[1] root
-- ARGV family
-- Returns 1 where there is work to wake somebody for, else 0.
-- include: _keys.lua
-- include: _queue.lua
if not has_work(ARGV[1]) then return 0 end
wake(ARGV[1])
return 1
