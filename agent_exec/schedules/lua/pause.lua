-- Let no further time of a schedule begin anything.
-- KEYS[1] schedule HASH; KEYS[2] due ZSET
-- ARGV 1 tenant, 2 schedule
-- Returns whether there is one
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('HSET', KEYS[1], 'paused', 1)
redis.call('ZREM', KEYS[2], ARGV[1] .. ' ' .. ARGV[2])
return true
