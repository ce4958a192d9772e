-- Read where a tenant's batches stand, newest first.
-- KEYS[1] the tenant's batches ZSET; their HASHes are read under the prefix ARGV[4], which keys.py spells
-- ARGV 1 stored at or before this ms ('+inf' for all), 2 skip so many of that very ms, 3 at most so many, 4 prefix of a batch's key,
--      with the tenant
-- Returns for each {batch, stored at in ms, its fields as a flat list, empty where it has expired}
local reply = {}
local found = redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
for place = 1, #found, 2 do
  reply[#reply + 1] = {found[place], found[place + 1], redis.call('HGETALL', ARGV[4] .. found[place])}
end
return reply
