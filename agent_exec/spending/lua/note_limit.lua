-- Note a tenant's budget, for calls that do not know it.
-- KEYS[1] the limit STRING
-- ARGV 1 micro-dollars a day, or '' for no limit, 2 kept for s
-- Returns 1.
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
