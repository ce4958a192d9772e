-- Take the orchestrator's word for what it has: each ack covers its execution up to that event.
-- KEYS[1] unacked ZSET; KEYS[2] orchestrator acks STRING; HASHes and tenants are found under the prefixes that keys.py spells
-- ARGV 1 prefix of an execution's key, 2 prefix of its tenant's, 3 remember for so many ms that it acknowledges;
--      then two an ack: execution, sequence
-- Returns a verdict for each: acked | gone | ahead
-- include: _acknowledge.lua
local verdicts = {}
for index = 4, #ARGV, 2 do
  local execution, sequence = ARGV[index], tonumber(ARGV[index + 1])
  local tenant = redis.call('GET', ARGV[2] .. execution)
  local verdict = tenant and acknowledge(KEYS[1], ARGV[1], tenant, execution, sequence) or 'gone'
  if verdict == 'acked' then redis.call('SET', KEYS[2], '1', 'PX', ARGV[3]) end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
