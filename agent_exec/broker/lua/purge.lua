-- Remove waiting messages of a family, of a tenant in it, or of one queue; those in flight stay.
-- KEYS[1] root
-- ARGV queue, limit
-- Returns how many were removed; fewer than the limit means that none is left.
-- include: _keys.lua
-- include: _queue.lua
-- include: _settle.lua
-- include: _plain.lua
local left = tonumber(ARGV[2])

local function purge_list(list)
  while left > 0 do
    local message = call('RPOP', list)
    if not message then return end
    if message ~= '' then left = left - 1 end
  end
end

local function purge(node)
  for _, item in ipairs(call('ZRANGE', LEAF .. node, 0, left - 1)) do
    call('ZREM', LEAF .. node, item)
    count_down(WAITING, family_of(node))
    if node ~= family_of(node) then count_down(WAITING, tenant_of(node)) end
    forget(item)
    left = left - 1
  end
  local children = call('ZRANGE', RING .. node, 0, -1)
  for _, tenant in ipairs(call('HKEYS', PARKED .. node)) do children[#children + 1] = tenant end
  for _, child in ipairs(children) do
    if left <= 0 then return end
    purge(child)
  end
end

local queue = ARGV[1]
if queue == family_of(queue) then
  purge_list(ARRIVING .. queue)
  purge_list(PREFIX .. queue)
  for _, list in ipairs(variants(queue)) do purge_list(list) end
end
if left > 0 then purge(queue) end
return tonumber(ARGV[2]) - left
