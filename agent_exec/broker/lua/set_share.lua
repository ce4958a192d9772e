-- Set a tenant's weight and cap in every family; both take effect at once.
-- KEYS[1] root
-- ARGV tenant, weight ('' for 1), cap ('' for the default), families
-- Returns 1, or 0 where both were so already.
-- include: _keys.lua
-- include: _queue.lua
local tenant, weight, cap = ARGV[1], ARGV[2], ARGV[3]
local old_weight, old_cap = call('HGET', WEIGHT, tenant) or '', call('HGET', CAP, tenant) or ''
if weight == old_weight and cap == old_cap then return 0 end
if weight == '' then call('HDEL', WEIGHT, tenant) else call('HSET', WEIGHT, tenant, weight) end
if cap == '' then call('HDEL', CAP, tenant) else call('HSET', CAP, tenant, cap) end

-- What the tenant owes was counted in its old weight: rescale it, lest it wait for a debt of another plan.
local scale = (tonumber(old_weight) or 1) / (tonumber(weight) or 1)
for index = 4, #ARGV do
  local family = ARGV[index]
  local node = family .. ':' .. tenant
  unpark(node)
  local start, virtual = call('ZSCORE', RING .. family, node), tonumber(call('HGET', VIRTUAL, family)) or 0
  if start and tonumber(start) > virtual then
    call('ZADD', RING .. family, virtual + (tonumber(start) - virtual) * scale, node)
  end
end
return 1
