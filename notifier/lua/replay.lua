-- Send an execution's events again from a sequence number on, acknowledged or not.
-- KEYS[1] execution HASH; KEYS[2] outbox ZSET; KEYS[3] outbox wake LIST
-- ARGV 1 tenant, 2 execution, 3 first sequence to send again
-- Returns replaying | gone | ahead (it has no such event yet)
-- include: _clock.lua
local tenant, execution, sequence = ARGV[1], ARGV[2], tonumber(ARGV[3])
local owner, last, notified, acked = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'sequence', 'notified', 'acked'))
if owner ~= tenant then return 'gone' end
if sequence > tonumber(last) then return 'ahead' end
redis.call('HSET', KEYS[1], 'notified', math.min(sequence - 1, tonumber(notified or 0)),
  'acked', math.min(sequence - 1, tonumber(acked or 0)))
redis.call('ZADD', KEYS[2], 'NX', clock_ms(), tenant .. ' ' .. execution)
if redis.call('LLEN', KEYS[3]) == 0 then redis.call('LPUSH', KEYS[3], '1') end
return 'replaying'
