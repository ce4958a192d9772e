-- Find whose execution an id names.
-- KEYS[1] tenant of the execution STRING
-- Returns the tenant, or nil
return redis.call('GET', KEYS[1])
