-- Read an execution's events after a sequence number.
-- KEYS[1] execution HASH; KEYS[2] streaming STREAM
-- ARGV 1 tenant, 2 after this sequence, 3 at most so many
-- Returns {} where this tenant has no such execution, else {task, global task, status, last sequence, then four an event: sequence, name, at_ms, JSON}
local owner, task, global, status, last = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'task', 'global', 'status', 'sequence'))
if owner ~= ARGV[1] then return {} end
local reply = {task, global, status, last}
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], string.format('(%d-0', ARGV[2]), '+', 'COUNT', ARGV[3])) do
  reply[#reply + 1] = string.match(entry[1], '^%d+')
  local fields = entry[2] -- event, <name>, at_ms, <ms>, data, <JSON>
  for index = 2, 6, 2 do reply[#reply + 1] = fields[index] end
end
return reply
