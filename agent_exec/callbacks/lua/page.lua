-- Read how a tenant's callbacks in one state stand, the latest first.
-- KEYS[1] the tenant's waiting, sending or dead ZSET; their HASHes are read under the prefix ARGV[4], which keys.py spells
-- ARGV 1 at or before this ms ('+inf' for all), 2 skip so many of that very ms, 3 at most so many, 4 prefix of a callback's key,
--      then the fields that are wanted
-- Returns for each {id, at in ms, their values}; an id alone where it has expired
local reply = {}
local found = redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
for index = 1, #found, 2 do
  local values = redis.call('HMGET', ARGV[4] .. found[index], unpack(ARGV, 5))
  reply[#reply + 1] = values[1] and {found[index], found[index + 1], unpack(values)} or {found[index], found[index + 1]}
end
return reply
