-- Keep what is known of a tenant, for those who accept its work.
-- KEYS[1] tenant HASH
-- ARGV 1 plan, 2 keep it for ms
-- Returns 1
redis.call('HSET', KEYS[1], 'plan', ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
