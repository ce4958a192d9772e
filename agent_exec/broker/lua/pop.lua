-- Give a worker the next message of a family, and record it as un-acked in the same breath.
-- KEYS[1] root
-- ARGV family, lease_ms, default cap ('' for none), plain_first (1 or 0), max_plain_bytes, max_faults,
--      dead letters kept, dead letter max_bytes
-- Returns {delivery, queue, message, earlier deliveries}; {} when the bound on work was reached: call again;
--         nil when there is nothing.
-- include: _keys.lua
-- include: _queue.lua
local family, lease_ms, default_cap, plain_first = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local max_plain_bytes, max_faults, keep, max_bytes =
  tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

-- Tenants dropped or parked, tokens and oversized messages discarded: no call does more of these than this.
local budget = 64
-- Lapsed deliveries of any family that one call puts back.
local MAX_LAPSED = 16

local function at_cap(tenant)
  local cap = tonumber(call('HGET', CAP, string.match(tenant, ':(.*)$'))) or default_cap
  return cap, cap and (tonumber(call('HGET', IN_FLIGHT, tenant)) or 0) >= cap
end

-- Dropped or parked or served: whoever was reached was the earliest, so virtual time has come to where it starts.
-- (The first write of a call is one that takes: Redis allows that even when full, and all that follow it.)
local function leave(node, child, start)
  call('ZREM', RING .. node, child)
  call('HSET', VIRTUAL, node, start)
end

-- The most urgent message under a node, charging every level on the way. Children found empty are dropped here and
-- not where they drained: until then they owe what they used.
local function take(node)
  if node ~= family then
    local first = call('ZPOPMIN', LEAF .. node)
    if first[1] then return first[1], node end
  end
  while budget > 0 do
    local head = call('ZRANGE', RING .. node, 0, 0, 'WITHSCORES')
    local child, start = head[1], head[2]
    if not child then
      -- The virtual time may begin anew only when nobody is owed anything in the old one.
      if call('EXISTS', PARKED .. node) == 0 then call('HDEL', VIRTUAL, node) end
      return nil
    end
    local cap, capped
    if node == family then cap, capped = at_cap(child) end
    if capped then
      budget = budget - 1
      leave(node, child, start)
      call('HSET', PARKED .. family, child, start)
    else
      local tag, queue = take(child)
      if tag then
        local weight, held = 1, 0
        if node == family then
          weight = tonumber(call('HGET', WEIGHT, string.match(child, ':(.*)$'))) or 1
          held = call('HINCRBY', IN_FLIGHT, child, 1)
        end
        local finish = tonumber(start) + 1 / weight
        if cap and held >= cap then
          leave(node, child, start)
          call('HSET', PARKED .. family, child, finish)
        else
          call('HSET', VIRTUAL, node, start)
          call('ZADD', RING .. node, finish, child)
        end
        return tag, queue
      end
      if budget <= 0 then return nil end
      budget = budget - 1
      leave(node, child, start)
    end
  end
  return nil
end

local function take_fair()
  local tag, queue = take(family)
  if not tag then return nil end
  count_waiting(queue, -1)
  return tag, read_record(tag)
end

local function admit(message)
  local now = tick_us()
  local tag = 'plain-' .. text(now)
  call('HSET', MESSAGE, tag, message)
  return tag, {score = text(now), enqueued_us = now, priority = 0, deliveries = 0, faults = 0, queue = family}
end

-- The plain messages: those that came back, then the lists, each in its turn. No list is more urgent than another,
-- for what counts is the priority inside the message; beginning where the clock says starves none.
local function take_plain()
  local first = call('ZPOPMIN', LEAF .. family)
  if first[1] then
    count(WAITING, family, -1)
    call('HINCRBY', IN_FLIGHT, family, 1)
    return first[1], read_record(first[1])
  end
  local lists = variants(family)
  if call('EXISTS', unpack(lists)) == 0 then lists = {} end
  lists[#lists + 1] = ARRIVING .. family
  lists[#lists + 1] = plain(family)
  local begin = #lists == 2 and 0 or now_us() % #lists
  for turn = 0, #lists - 1 do
    local list = lists[(begin + turn) % #lists + 1]
    while budget > 0 do
      local message = call('RPOP', list)
      if not message then break end
      if message == '' then budget = budget - 1
      elseif #message > max_plain_bytes then
        budget = budget - 1
        bury({reason = 'has ' .. #message .. ' bytes; at most ' .. max_plain_bytes .. ' are taken', queue = family,
              tag = '', deliveries = 0}, message, keep, max_bytes)
      else
        call('HINCRBY', IN_FLIGHT, family, 1)
        return admit(message)
      end
    end
  end
  return nil
end

for _, delivery in ipairs(call('ZRANGEBYSCORE', LEASE, '-inf', now_ms(), 'LIMIT', 0, MAX_LAPSED)) do
  give_back(delivery, 1, max_faults, keep, max_bytes)
end

local tag, record
if plain_first then tag, record = take_plain() end
if not tag then tag, record = take_fair() end
if not tag and not plain_first then tag, record = take_plain() end
if not tag then
  if budget <= 0 then return {} end
  return nil
end

record.deliveries = record.deliveries + 1
write_record(tag, record)
local delivery = tag .. '#' .. record.deliveries
call('ZADD', LEASE, now_ms() + lease_ms, delivery)
if has_work(family) then wake(family) end
return {delivery, record.queue, call('HGET', MESSAGE, tag), record.deliveries - 1}
