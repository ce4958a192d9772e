-- Have a step's hint sent again after a while. The step stays as it is; one that is done, or not there, is not looked at again.
-- KEYS[1] execution HASH; KEYS[2] pending ZSET
-- ARGV 1 tenant, 2 execution, 3 step, 4 after ms
-- Returns put off | gone
-- include: _state.lua
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return 'gone' end
redis.call('ZADD', KEYS[2], 'XX', clock_ms() + ARGV[4], member(ARGV[1], ARGV[2], ARGV[3]))
return 'put off'
