-- Read a tenant's schedules, newest first.
-- KEYS[1] the tenant's schedules ZSET; their HASHes are read under the prefix ARGV[5], which keys.py spells
-- ARGV 1 stored at or before this ms ('+inf' for all), 2 skip so many of that very ms, 3 at most so many, 4 and so many bytes of
--      requests, but for the first, 5 prefix of a schedule's key, with the tenant
-- Returns {1 if there may be more behind these else 0, then for each {schedule, stored at in ms, its fields as a flat list}}
local found = redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
local reply, bytes = {#found / 2 == tonumber(ARGV[3]) and 1 or 0}, 0
for place = 1, #found, 2 do
  local key = ARGV[5] .. found[place]
  bytes = bytes + redis.call('HSTRLEN', key, 'request')
  if place > 1 and bytes > tonumber(ARGV[4]) then
    reply[1] = 1
    break
  end
  reply[#reply + 1] = {found[place], found[place + 1], redis.call('HGETALL', key)}
end
return reply
