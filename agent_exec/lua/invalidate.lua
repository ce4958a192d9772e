-- Void what is cached of a configuration.
-- KEYS[1] the tenant's voided configurations HASH
-- ARGV 1 agent, or * for all, 2 the mark is kept for s
-- Returns 1.
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], time[1] .. '.' .. time[2])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
