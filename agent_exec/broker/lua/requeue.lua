-- Put back a delivery that its worker refused; one that comes back too often becomes a dead letter.
-- KEYS[1] root
-- ARGV delivery, max_faults, dead letters kept, dead letter max_bytes
-- Returns 1, or 0 where it was not the current delivery.
-- include: _keys.lua
-- include: _queue.lua
return give_back(ARGV[1], 1, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
