-- Put what was sent and not acknowledged back into the outbox, from the first such event on: one batch of executions.
-- KEYS[1] outbox ZSET; KEYS[2] unacked ZSET
-- ARGV 1 at most so many executions, 2 prefix of an execution's key
-- Returns how many were looked at; 0 where none is left
local batch = redis.call('ZRANGE', KEYS[2], 0, ARGV[1] - 1, 'WITHSCORES')
for index = 1, #batch, 2 do
  local tenant, execution = string.match(batch[index], '^(%S+) (%S+)$')
  local key = ARGV[2] .. tenant .. ':' .. execution
  local owner, acked = unpack(redis.call('HMGET', key, 'tenant', 'acked'))
  if owner == tenant then
    redis.call('HSET', key, 'notified', acked or 0)
    redis.call('ZADD', KEYS[1], 'NX', batch[index + 1], batch[index])
  end
  redis.call('ZREM', KEYS[2], batch[index])
end
return #batch / 2
