-- Read an execution.
-- KEYS[1] execution HASH; ARGV[1] tenant
-- Returns its fields and values, or nothing where this tenant has no such execution
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return {} end
return redis.call('HGETALL', KEYS[1])
