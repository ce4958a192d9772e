-- Keep a delivery among the dead letters instead of its queue.
-- KEYS[1] root
-- ARGV delivery, reason, dead letters kept, dead letter max_bytes
-- Returns 1, or 0 where it was not the current delivery.
-- include: _keys.lua
-- include: _queue.lua
-- include: _clock.lua
-- include: _record.lua
-- include: _enqueue.lua
-- include: _settle.lua
-- include: _return.lua
local tag, packed = unlease(ARGV[1])
if not tag then return 0 end
bury_tag(tag, unpack_record(packed), ARGV[2], now_us(), tonumber(ARGV[3]), tonumber(ARGV[4]))
return 1
