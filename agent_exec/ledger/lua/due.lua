-- Take the steps whose time has come, and look at each again later: retries due, leases expired, hints lost.
-- KEYS[1] pending ZSET; execution HASHes are read under the prefix ARGV[3], which keys.py spells
-- ARGV 1 at most so many, 2 look at a hint again after ms, 3 prefix of an execution's key
-- Returns {ms until the next is due, or -1 for none; then for each: tenant, execution, step, agent, priority, fence, parent}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {-1}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local tenant, execution, step = string.match(entry, '^(%S+) (%S+) (%S+)$')
  local agent, priority, packed = unpack(redis.call('HMGET', ARGV[3] .. tenant .. ':' .. execution, 'agent', 'priority', 'step:' .. step))
  local fields = packed and cjson.decode(packed)
  if not fields or fields.state == 'done' then
    redis.call('ZREM', KEYS[1], entry)
  elseif fields.state == 'running' and fields.lease_ms > now then
    redis.call('ZADD', KEYS[1], fields.lease_ms, entry)
  else
    redis.call('ZADD', KEYS[1], now + ARGV[2], entry)
    for _, value in ipairs({tenant, execution, step, agent, priority, fields.fence, fields.parent}) do
      reply[#reply + 1] = value
    end
  end
end
local nearest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if nearest[2] then reply[1] = math.max(0, nearest[2] - now) end
return reply
