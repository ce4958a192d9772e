-- Putting a message into its queue, behind _queue.lua.

-- Start-time fair queueing: a node that becomes busy starts at its parent's virtual time; one still in the ring
-- keeps (NX) the start that it owes, so nobody gains by draining and refilling.
local function join(parent, child)
  call('ZADD', RING .. parent, 'NX', call('HGET', VIRTUAL, parent) or 0, child)
end

local function enqueue(tag, score, queue)
  local family, tenant = family_of(queue), tenant_of(queue)
  call('ZADD', LEAF .. queue, score, tag)
  call('HINCRBY', WAITING, family, 1)
  if tenant ~= family then
    local waiting = call('HINCRBY', WAITING, tenant, 1)
    local child = queue
    while child ~= tenant do
      local parent = string.match(child, '^(.*):[^:]*$')
      join(parent, child)
      child = parent
    end
    -- A tenant with more than this one has its place, in the ring or parked, and somebody was woken for it.
    if waiting > 1 or call('HEXISTS', PARKED .. family, tenant) == 1 then return end
    join(family, tenant)
  end
  wake(family)
end
