-- Read a schedule, and Redis's clock.
-- KEYS[1] schedule HASH
-- Returns {now in ms, its fields as a flat list}
-- include: ../../ledger/lua/_state.lua
return {clock_ms(), redis.call('HGETALL', KEYS[1])}
