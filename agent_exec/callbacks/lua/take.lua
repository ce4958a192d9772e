-- Take what is due, tenant by tenant, those first that were served longest ago; a tenant has so many on their way at most.
-- KEYS[1] callbacks ZSET; the tenants' keys are found under the prefixes that keys.py spells
-- ARGV 1 at most so many, 2 of one tenant on their way, 3 of one tenant at once, 4 bytes (one may exceed it), 5 lease in ms,
--      6 keep the sending ZSET for ms, 7 prefix of a callback's key, 8 of a tenant's waiting ZSET, 9 of its sending ZSET
-- Returns {ms until the next look, or -1 for none; then for each tenant, id, fence, attempts, created at in ms, url, body}
-- include: _clock.lua
-- include: _next_look.lua
local now, exact = clock_ms()
local room, cap, at_once, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local reply = {-1}

local function take(tenant, id, sending)
  local key = ARGV[7] .. tenant .. ':' .. id
  local owner, attempts, created_ms, url, body =
    unpack(redis.call('HMGET', key, 'tenant', 'attempts', 'created_ms', 'url', 'body'))
  if owner ~= tenant then return end
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  redis.call('HSET', key, 'state', 'sending', 'due_ms', '')
  redis.call('ZADD', sending, now + ARGV[5], id)
  redis.call('PEXPIRE', sending, ARGV[6])
  room, bytes = room - 1, bytes - #body
  reply[#reply + 1] = {tenant, id, fence, tonumber(attempts), tonumber(created_ms), url, body}
end

for _, tenant in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', exact, 'LIMIT', 0, room)) do
  local waiting, sending = ARGV[8] .. tenant, ARGV[9] .. tenant
  -- Whoever had these has died, or stalls: nobody knows whether they arrived.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', sending, '-inf', now)) do
    redis.call('ZREM', sending, id)
    redis.call('ZADD', waiting, now, id)
  end
  local under_way = redis.call('ZCARD', sending)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, math.max(0, math.min(at_once, cap - under_way)))) do
    if room <= 0 or bytes <= 0 then break end
    redis.call('ZREM', waiting, id)
    take(tenant, id, sending)
  end
  next_look(KEYS[1], waiting, sending, tenant, redis.call('ZCARD', sending) >= cap, exact)
  if room <= 0 or bytes <= 0 then break end
end
local nearest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if nearest[2] then reply[1] = math.max(0, math.ceil(nearest[2] - exact)) end
return reply
