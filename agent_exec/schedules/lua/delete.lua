-- Forget a schedule; what it has begun goes on.
-- KEYS[1] schedule HASH; KEYS[2] due ZSET; KEYS[3] the tenant's schedules ZSET
-- ARGV 1 tenant, 2 schedule
-- Returns whether there was one
redis.call('ZREM', KEYS[2], ARGV[1] .. ' ' .. ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
return redis.call('DEL', KEYS[1]) == 1
