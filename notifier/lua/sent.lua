-- Note what was sent. Only the active notifier may: the frames of one that lost its lease may not have arrived.
-- KEYS[1] outbox ZSET; KEYS[2] unacked ZSET; KEYS[3] notifier's lease STRING
-- ARGV 1 who sent it, 2 prefix of an execution's key, 3 forget what was sent this many ms ago and never acknowledged;
--      then three an execution: tenant, execution, last sequence sent
-- Returns how many executions wait in the outbox now, or -1 where another notifier is active
-- include: _clock.lua
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return -1 end
local now = clock_ms()
for index = 4, #ARGV, 3 do
  local tenant, execution, sequence = ARGV[index], ARGV[index + 1], tonumber(ARGV[index + 2])
  local key, member = ARGV[2] .. tenant .. ':' .. execution, tenant .. ' ' .. execution
  local owner, last = unpack(redis.call('HMGET', key, 'tenant', 'sequence'))
  if owner == tenant then
    redis.call('HSET', key, 'notified', sequence)
    redis.call('ZADD', KEYS[2], now, member)
  end
  if owner == tenant and tonumber(last) > sequence then
    redis.call('ZADD', KEYS[1], now, member) -- behind the others
  else
    redis.call('ZREM', KEYS[1], member)
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
return redis.call('ZCARD', KEYS[1])
