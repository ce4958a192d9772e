-- Read what is to be sent: of the executions that have waited longest, the events not sent, in order. Forgets what is gone.
-- KEYS[1] outbox ZSET; execution HASHes and streaming STREAMs are read under the prefixes that keys.py spells
-- ARGV 1 at most so many executions, 2 events in all, 3 events of one execution, 4 bytes (one event may exceed it),
--      5 prefix of an execution's key, 6 prefix of its stream's
-- Returns {1 where more can be taken at once, else 0; then for each execution
--          {tenant, execution, task, global task, status, last sequence, then four an event: sequence, name, at_ms, JSON}}
local READ_AT_ONCE = 25 -- so that a page of large events is not held in memory whole before its bytes are counted
local executions, room, page, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local function read(stream, after, limit)
  local flat = {}
  while limit > 0 and bytes > 0 do
    local entries = redis.call('XRANGE', stream, string.format('(%d-0', after), '+', 'COUNT', math.min(limit, READ_AT_ONCE))
    for _, entry in ipairs(entries) do
      if bytes <= 0 then return flat, after end
      local fields = entry[2] -- event, <name>, at_ms, <ms>, data, <JSON>
      after, bytes, limit, room = tonumber(string.match(entry[1], '^%d+')), bytes - #fields[6], limit - 1, room - 1
      for _, value in ipairs({after, fields[2], fields[4], fields[6]}) do flat[#flat + 1] = value end
    end
    if #entries < READ_AT_ONCE then return flat, after end
  end
  return flat, after
end

local waiting = redis.call('ZRANGE', KEYS[1], 0, executions - 1)
local reply = {#waiting == executions and 1 or 0}
for _, member in ipairs(waiting) do
  if room <= 0 or bytes <= 0 then
    reply[1] = 1
    break
  end
  local tenant, execution = string.match(member, '^(%S+) (%S+)$')
  local owner, task, global, status, last, notified =
    unpack(redis.call('HMGET', ARGV[5] .. tenant .. ':' .. execution, 'tenant', 'task', 'global', 'status', 'sequence', 'notified'))
  local flat, upto = {}, 0
  if owner == tenant and tonumber(last) > tonumber(notified or 0) then
    flat, upto = read(ARGV[6] .. tenant .. ':' .. execution, tonumber(notified or 0), math.min(page, room))
  end
  if #flat == 0 then
    redis.call('ZREM', KEYS[1], member)
  else
    if upto < tonumber(last) then reply[1] = 1 end
    reply[#reply + 1] = {tenant, execution, task, global, status, last, unpack(flat)}
  end
end
return reply
