-- Read where a batch stands.
-- KEYS[1] batch HASH
-- Returns its fields as a flat list
return redis.call('HGETALL', KEYS[1])
