-- Let a schedule go on, from the next of its times; one that was not paused stays as it is.
-- KEYS[1] schedule HASH; KEYS[2] due ZSET
-- ARGV 1 tenant, 2 schedule, 3 the next time, in ms
-- Returns whether there is one
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
if redis.call('HDEL', KEYS[1], 'paused') == 1 then
  redis.call('HSET', KEYS[1], 'next_ms', ARGV[3])
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1] .. ' ' .. ARGV[2])
end
return true
