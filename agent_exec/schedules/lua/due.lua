-- Take the schedules whose time has come, and look at each again later, should who took it die.
-- KEYS[1] due ZSET; schedule HASHes are read under the prefix ARGV[3], which keys.py spells
-- ARGV 1 at most so many, 2 again after ms, 3 prefix of a schedule's key
-- Returns {now in ms, then for each: tenant, schedule, its fields as a flat list}
-- include: ../../ledger/lua/_state.lua
local now = clock_ms()
local reply = {now}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local tenant, schedule = string.match(entry, '^(%S+) (%S+)$')
  local key = ARGV[3] .. tenant .. ':' .. schedule
  local next_ms = redis.call('HGET', key, 'next_ms')
  if not next_ms then
    redis.call('ZREM', KEYS[1], entry)
  elseif tonumber(next_ms) > now then -- the record decides: this is when it is looked at alone
    redis.call('ZADD', KEYS[1], next_ms, entry)
  else
    redis.call('ZADD', KEYS[1], now + ARGV[2], entry)
    reply[#reply + 1] = {tenant, schedule, redis.call('HGETALL', key)}
  end
end
return reply
