-- Keep a delivery among the dead letters instead of its queue.
-- KEYS[1] root
-- ARGV delivery, reason, dead letters kept, dead letter max_bytes
-- Returns 1, or 0 where it was not the current delivery.
-- include: _keys.lua
-- include: _queue.lua
local tag, record = unlease(ARGV[1])
if not tag then return 0 end
bury_tag(tag, record, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
return 1
