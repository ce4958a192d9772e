-- List a tenant's executions, newest first.
-- KEYS[1] the tenant's executions ZSET
-- ARGV 1 accepted at or before this ms ('+inf' for all), 2 skip so many of that very ms, 3 at most so many
-- Returns two an execution: its id, accepted at in ms
return redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
