-- Give a worker the next message of a family, and record it as un-acked in the same breath.
-- KEYS[1] root
-- ARGV family, lease_ms, default cap ('' for none), plain_first (1 or 0), max_plain_bytes, max_faults,
--      dead letters kept, dead letter max_bytes, deliveries that are done
-- Returns {delivery, queue, message, earlier deliveries, more (1 or 0)}; {} when the bound on work was reached: call
--         again; nil when there is nothing.
-- include: _keys.lua
-- include: _queue.lua
-- include: _clock.lua
-- include: _record.lua
-- include: _enqueue.lua
-- include: _settle.lua
-- include: _return.lua
-- include: _plain.lua
local family, default_cap, plain_first = ARGV[1], tonumber(ARGV[3]), ARGV[4] == '1'
local max_plain_bytes, max_faults, keep, max_bytes =
  tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local now = now_us()

-- Tenants dropped or parked, tokens and oversized messages discarded: no call does more of these than this.
local budget = 64
-- Lapsed deliveries of any family that one call puts back.
local MAX_LAPSED = 16

local function share_of(tenant)
  local share = call('HGET', SHARE, string.sub(tenant, #family + 2))
  if not share then return 1, default_cap end
  local weight, cap = string.match(share, '^(%S*) (%S*)$')
  return tonumber(weight) or 1, tonumber(cap) or default_cap
end

-- Dropped or parked or served: whoever was reached was the earliest, so virtual time has come to where it starts.
-- (The first write of a call is one that takes: Redis allows that even when full, and all that follow it.)
local function leave(node, child, start)
  call('ZREM', RING .. node, child)
  call('HSET', VIRTUAL, node, start)
end

-- The most urgent message under a node, charging every level on the way. Children found empty are dropped here and
-- not where they drained: until then they owe what they used.
-- Returns tag, queue, the child that it was under, and whether that one stays in the ring.
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
    local weight, cap = 1, nil
    if node == family then weight, cap = share_of(child) end
    if cap and (tonumber(call('HGET', IN_FLIGHT, child)) or 0) >= cap then
      budget = budget - 1
      leave(node, child, start)
      call('HSET', PARKED .. family, child, start)
    else
      local tag, queue = take(child)
      if tag then
        local held = node == family and call('HINCRBY', IN_FLIGHT, child, 1)
        local finish, full = tonumber(start) + 1 / weight, cap and held >= cap
        if full then
          leave(node, child, start)
          call('HSET', PARKED .. family, child, finish)
        else
          call('HSET', VIRTUAL, node, start)
          call('ZADD', RING .. node, finish, child)
        end
        return tag, queue, child, not full
      end
      if budget <= 0 then return nil end
      budget = budget - 1
      leave(node, child, start)
    end
  end
  return nil
end

local plain, arriving, lists = PREFIX .. family, ARRIVING .. family, variants(family)

local function admit(message)
  local tick = text(tick_us(now))
  local tag = 'plain-' .. tick
  call('HSET', MESSAGE, tag, message)
  return tag, table.concat({tick, tick, 0, 0, 0, family}, ' ')
end

-- The plain messages: those that came back, then the lists, each in its turn. No list is more urgent than another,
-- for what counts is the priority inside the message; beginning where the clock says starves none.
local function take_plain()
  local first = call('ZPOPMIN', LEAF .. family)
  if first[1] then
    count_down(WAITING, family)
    call('HINCRBY', IN_FLIGHT, family, 1)
    return first[1], call('HGET', RECORD, first[1])
  end
  local turns = call('EXISTS', unpack(lists)) > 0 and {unpack(lists)} or {}
  turns[#turns + 1] = arriving
  turns[#turns + 1] = plain
  local begin = #turns == 2 and 0 or now % #turns
  for turn = 0, #turns - 1 do
    local list = turns[(begin + turn) % #turns + 1]
    while budget > 0 do
      local message = call('RPOP', list)
      if not message then break end
      if message == '' then budget = budget - 1
      elseif #message > max_plain_bytes then
        budget = budget - 1
        bury({reason = 'has ' .. #message .. ' bytes; at most ' .. max_plain_bytes .. ' are taken', queue = family,
              tag = '', deliveries = 0}, message, now, keep, max_bytes)
      else
        call('HINCRBY', IN_FLIGHT, family, 1)
        return admit(message)
      end
    end
  end
  return nil
end

for index = 9, #ARGV do settle(ARGV[index]) end
for _, delivery in ipairs(call('ZRANGEBYSCORE', LEASE, '-inf', math.floor(now / 1000), 'LIMIT', 0, MAX_LAPSED)) do
  give_back(delivery, 1, max_faults, now, keep, max_bytes)
end

local beside, token = plain_waits(family, lists)
local tag, packed, queue, tenant, in_ring, more
if plain_first and beside then tag, packed = take_plain() end
if not tag then
  tag, queue, tenant, in_ring = take(family)
  if tag then
    packed = call('HGET', RECORD, tag)
    count_down(WAITING, tenant)
    more = count_down(WAITING, family) > 0 and (in_ring or call('EXISTS', RING .. family) == 1) or beside
    if more and not token then wake(family) end
  elseif not (plain_first and beside) then
    tag, packed = take_plain()
  end
end
if not tag then
  if budget <= 0 then return {} end
  return nil
end
if not queue then
  queue = family
  more = plain_waits(family, lists) or fair_waits(family)
  if more then wake(family) end
end

local before, deliveries, after = string.match(packed, '^(%S+ %S+ %S+ )(%d+)(.*)$')
local delivery = tag .. '#' .. deliveries + 1
call('HSET', RECORD, tag, before .. deliveries + 1 .. after)
call('ZADD', LEASE, math.floor(now / 1000) + ARGV[2], delivery)
return {delivery, queue, call('HGET', MESSAGE, tag), tonumber(deliveries), more and 1 or 0}
