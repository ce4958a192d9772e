-- Read the newest dead letters.
-- KEYS[1] root
-- ARGV limit
-- Returns them, newest first, as JSON.
-- include: _keys.lua
return redis.call('LRANGE', DEAD, 0, tonumber(ARGV[1]) - 1)
