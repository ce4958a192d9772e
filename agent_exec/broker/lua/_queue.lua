-- Names, counts, and waking a worker. Every file that is included costs each call of a script: Lua makes its functions anew.
local call = redis.call

local function family_of(queue) return string.match(queue, '^[^:]+') end
-- Caps and counts are a tenant's; the plain messages of a family count under the family.
local function tenant_of(queue) return string.match(queue, '^[^:]+:[^:]+') or queue end

-- A counter that is absent at zero: nothing stays behind for a tenant without work.
local function count_down(key, field)
  local left = call('HINCRBY', key, field, -1)
  if left <= 0 then call('HDEL', key, field) end
  return left
end

-- A token is the empty string. A list that holds anything has nobody blocked on it, so it needs none.
local function wake(family)
  local plain = PREFIX .. family
  if call('EXISTS', plain) == 0 then call('LPUSH', plain, '') end
end
