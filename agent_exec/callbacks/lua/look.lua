-- Read how a callback stands.
-- KEYS[1] callback HASH; ARGV[1] tenant, then the fields that are wanted
-- Returns their values, or nothing where this tenant has no such callback
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return {} end
return redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
