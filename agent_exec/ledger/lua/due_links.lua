-- Take ended executions whose links were not sent in time, and look at each again later, should who takes it die as well.
-- KEYS[1] unsent links ZSET
-- ARGV 1 at most so many, 2 look again after ms
-- Returns a list of `tenant execution`
-- include: _state.lua
local now = clock_ms()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, entry in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], entry) end
return due
