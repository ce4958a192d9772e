-- Plain messages: what a Celery app without this package sent to the family's own name.

-- The nine variants of a family's list that a stock producer may write by its `priority_steps`.
local function variants(family)
  local names = {}
  for step = 1, 9 do names[step] = PREFIX .. family .. '\6\22' .. step end
  return names
end

-- Those of a family that no worker has seen. A token in the plain list is always its oldest item.
local function unseen(family)
  local plain, arriving = PREFIX .. family, ARRIVING .. family
  local waiting = call('LLEN', arriving) - #call('LPOS', arriving, '', 'COUNT', 0) + call('LLEN', plain)
  if call('LINDEX', plain, -1) == '' then waiting = waiting - 1 end
  for _, list in ipairs(variants(family)) do waiting = waiting + call('LLEN', list) end
  return waiting
end

-- Does a message lie there? Tokens are none: those that have woken somebody, and the one that rests in the plain list.
-- The second result says that it does.
local function plain_waits(family, lists)
  local plain, arriving, returned = PREFIX .. family, ARRIVING .. family, LEAF .. family
  local found = call('EXISTS', plain, arriving, returned, unpack(lists))
  if found == 0 then return false, false end
  -- The token is the oldest of its list: where it is the first as well, it is alone.
  local token = call('LPOS', plain, '', 'RANK', -1, 'MAXLEN', 1)
  local tokens = token == 0 and 1 or 0
  if found > tokens and call('LREM', arriving, 0, '') > 0 then
    found = call('EXISTS', plain, arriving, returned, unpack(lists))
  end
  return found > tokens, token ~= false
end

-- Might one that waits in a queue be given now? (Emptied tenants may make this a false yes.)
local function fair_waits(family)
  return call('HEXISTS', WAITING, family) == 1 and call('EXISTS', RING .. family) == 1
end
