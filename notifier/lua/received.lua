-- Note what has reached the orchestrator's socket. That acknowledges it, unless the orchestrator acknowledges itself.
-- KEYS[1] unacked ZSET; KEYS[2] orchestrator acks STRING
-- ARGV 1 prefix of an execution's key; then three an execution: tenant, execution, last sequence received
-- Returns 1, or 0 where the orchestrator's own acks count
-- include: _acknowledge.lua
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
for index = 2, #ARGV, 3 do
  acknowledge(KEYS[1], ARGV[1], ARGV[index], ARGV[index + 1], tonumber(ARGV[index + 2]))
end
return 1
