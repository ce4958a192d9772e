-- Shared by the scripts, behind _keys.lua: time, counts, putting a message into its queue, giving one back, waking a
-- worker.
local call = redis.call
local DEAD_EXPIRES_S = 14 * 86400
local CLOCK_EXPIRES_S = 86400

-- Whole numbers of up to 2^53 as text; Lua's own conversion keeps 14 digits.
local function text(number) return string.format('%.0f', number) end

local function now_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function now_ms() return math.floor(now_us() / 1000) end

-- Microseconds that never repeat and never run backwards: order within a queue is exact, whatever the clock does.
local function tick_us()
  local now = math.max(now_us(), (tonumber(call('GET', CLOCK)) or 0) + 1)
  call('SET', CLOCK, text(now), 'EX', CLOCK_EXPIRES_S)
  return now
end

local function family_of(queue) return string.match(queue, '^[^:]+') end
-- Caps and counts are a tenant's; the plain messages of a family count under the family.
local function tenant_of(queue) return string.match(queue, '^[^:]+:[^:]+') or queue end

-- A counter that is absent at zero: nothing stays behind for a tenant without work.
local function count(key, field, by)
  local left = call('HINCRBY', key, field, by)
  if left <= 0 then call('HDEL', key, field) end
  return left
end

local function count_waiting(queue, by)
  local family, tenant = family_of(queue), tenant_of(queue)
  count(WAITING, family, by)
  if tenant ~= family then count(WAITING, tenant, by) end
end

-- A token is the empty string. A list that holds anything has nobody blocked on it, so it needs none.
local function wake(family)
  if call('LLEN', plain(family)) == 0 then call('LPUSH', plain(family), '') end
end

-- The plain messages of a family that no worker has seen. A token in the plain list is always its oldest item.
local function unseen(family)
  local waiting = call('LLEN', ARRIVING .. family) - #call('LPOS', ARRIVING .. family, '', 'COUNT', 0)
  waiting = waiting + call('LLEN', plain(family))
  if call('LINDEX', plain(family), -1) == '' then waiting = waiting - 1 end
  for _, list in ipairs(variants(family)) do waiting = waiting + call('LLEN', list) end
  return waiting
end

-- Is there something that a worker might be given now? (Emptied or capped tenants may make this a false yes.)
local function has_work(family)
  if call('EXISTS', ARRIVING .. family, unpack(variants(family))) > 0 then return true end
  return call('HEXISTS', WAITING, family) == 1 and call('EXISTS', RING .. family, LEAF .. family) > 0
end

-- record: `score enqueued_us priority deliveries faults queue`
local function read_record(tag)
  local packed = call('HGET', RECORD, tag)
  if not packed then return nil end
  local score, enqueued_us, priority, deliveries, faults, queue =
    string.match(packed, '^(%S+) (%d+) (%d) (%d+) (%d+) (.*)$')
  return {score = score, enqueued_us = tonumber(enqueued_us), priority = tonumber(priority),
          deliveries = tonumber(deliveries), faults = tonumber(faults), queue = queue}
end

local function write_record(tag, record)
  call('HSET', RECORD, tag, table.concat({record.score, text(record.enqueued_us), record.priority,
                                          record.deliveries, record.faults, record.queue}, ' '))
end

-- Each level of priority is worth `aging_us` of waiting.
local function score_of(record, aging_us) return text(record.enqueued_us - record.priority * aging_us) end

-- Start-time fair queueing: a node that becomes busy starts at its parent's virtual time; one still in the ring
-- keeps (NX) the start that it owes, so nobody gains by draining and refilling.
local function enqueue(tag, record)
  local queue, family = record.queue, family_of(record.queue)
  call('ZADD', LEAF .. queue, record.score, tag)
  count_waiting(queue, 1)
  local child, parked = queue, call('HEXISTS', PARKED .. family, tenant_of(queue)) == 1
  while true do
    local parent = string.match(child, '^(.*):[^:]*$')
    if not parent or (parked and parent == family) then break end
    call('ZADD', RING .. parent, 'NX', call('HGET', VIRTUAL, parent) or 0, child)
    child = parent
  end
  if not parked then wake(family) end
end

local function forget(tag)
  call('HDEL', RECORD, tag)
  call('HDEL', MESSAGE, tag)
end

local function bury(letter, message, keep, max_bytes)
  letter.at_ms, letter.bytes = now_ms(), #message
  letter.message = string.sub(message, 1, max_bytes)
  call('LPUSH', DEAD, cjson.encode(letter))
  call('LTRIM', DEAD, 0, keep - 1)
  call('EXPIRE', DEAD, DEAD_EXPIRES_S)
end

local function bury_tag(tag, record, reason, keep, max_bytes)
  bury({reason = reason, queue = record.queue, tag = tag, deliveries = record.deliveries},
       call('HGET', MESSAGE, tag) or '', keep, max_bytes)
  forget(tag)
end

-- A parked tenant goes back into the ring, no earlier than the virtual time and no earlier than it owes.
local function unpark(tenant)
  local family = family_of(tenant)
  local owed = call('HGET', PARKED .. family, tenant)
  if not owed then return end
  call('HDEL', PARKED .. family, tenant)
  local start = math.max(tonumber(owed), tonumber(call('HGET', VIRTUAL, family)) or 0)
  call('ZADD', RING .. family, start, tenant)
  if call('HEXISTS', WAITING, tenant) == 1 then wake(family) end
end

-- Take a delivery (`tag#n`) from its holder. Returns tag and record, or nil where it is not the current one: settled
-- already, or lapsed and perhaps delivered anew. That is what makes every settlement idempotent.
local function unlease(delivery)
  if call('ZREM', LEASE, delivery) == 0 then return nil end
  local tag = string.match(delivery, '^(.*)#%d+$')
  local record = read_record(tag)
  if not record then return nil end
  local tenant = tenant_of(record.queue)
  count(IN_FLIGHT, tenant, -1)
  unpark(tenant)
  return tag, record
end

-- Put a delivery back to its own place. A fault is a return that its holder's death or refusal caused.
local function give_back(delivery, fault, max_faults, keep, max_bytes)
  local tag, record = unlease(delivery)
  if not tag then return 0 end
  record.faults = record.faults + fault
  if record.faults > max_faults then
    bury_tag(tag, record, 'came back ' .. record.faults .. ' times: each worker that took it died or refused it',
             keep, max_bytes)
  else
    write_record(tag, record)
    enqueue(tag, record)
  end
  return 1
end
