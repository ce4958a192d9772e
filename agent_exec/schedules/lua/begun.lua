-- Note that the execution of a due time is there, or was left out, and when the next one is due. Only who took that very time says so.
-- KEYS[1] schedule HASH; KEYS[2] due ZSET
-- ARGV 1 tenant, 2 schedule, 3 the time that was due, in ms, 4 the next one, 5 '' or the execution that was begun
-- Returns whether this was the one to say so
if redis.call('HGET', KEYS[1], 'next_ms') ~= ARGV[3] then return false end
redis.call('HSET', KEYS[1], 'next_ms', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'last_ms', ARGV[3], 'last_execution', ARGV[5]) end
if redis.call('HEXISTS', KEYS[1], 'paused') == 0 then redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1] .. ' ' .. ARGV[2]) end
return true
