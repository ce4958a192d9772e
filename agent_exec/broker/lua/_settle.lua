-- Taking a delivery from its holder, behind _queue.lua.

-- A parked tenant goes back into the ring, no earlier than the virtual time and no earlier than it owes.
local function unpark(family, tenant)
  local owed = call('HGET', PARKED .. family, tenant)
  if not owed then return end
  call('HDEL', PARKED .. family, tenant)
  local start = math.max(tonumber(owed), tonumber(call('HGET', VIRTUAL, family)) or 0)
  call('ZADD', RING .. family, start, tenant)
  if call('HEXISTS', WAITING, tenant) == 1 then wake(family) end
end

-- Returns the tag and the record of a delivery (`tag#n`), or nil where it is not the current one: settled already, or
-- lapsed and perhaps delivered anew. That is what makes every settlement idempotent.
local function unlease(delivery)
  if call('ZREM', LEASE, delivery) == 0 then return nil end
  local tag = string.match(delivery, '^(.*)#%d+$')
  local packed = call('HGET', RECORD, tag)
  if not packed then return nil end
  local queue = string.match(packed, '^%S+ %S+ %S+ %S+ %S+ (.*)$')
  local tenant = tenant_of(queue)
  count_down(IN_FLIGHT, tenant)
  unpark(family_of(queue), tenant)
  return tag, packed
end

local function forget(tag)
  call('HDEL', RECORD, tag)
  call('HDEL', MESSAGE, tag)
end

-- Returns 1, or 0 where the delivery is not the current one.
local function settle(delivery)
  local tag = unlease(delivery)
  if not tag then return 0 end
  forget(tag)
  return 1
end
