-- Set a tenant's weight and cap in every family; both take effect at once.
-- KEYS[1] root
-- ARGV tenant, weight ('' for 1), cap ('' for the default), families
-- Returns 1, or 0 where both were so already.
-- include: _keys.lua
-- include: _queue.lua
-- include: _settle.lua
local tenant, weight = ARGV[1], ARGV[2]
local share, old = weight .. ' ' .. ARGV[3], call('HGET', SHARE, tenant) or ' '
if share == old then return 0 end
if share == ' ' then call('HDEL', SHARE, tenant) else call('HSET', SHARE, tenant, share) end

-- What the tenant owes was counted in its old weight: rescale it, lest it wait for a debt of another plan.
local scale = (tonumber(string.match(old, '^%S*')) or 1) / (tonumber(weight) or 1)
for index = 4, #ARGV do
  local family = ARGV[index]
  local node = family .. ':' .. tenant
  unpark(family, node)
  local start, virtual = call('ZSCORE', RING .. family, node), tonumber(call('HGET', VIRTUAL, family)) or 0
  if start and tonumber(start) > virtual then
    call('ZADD', RING .. family, virtual + (tonumber(start) - virtual) * scale, node)
  end
end
return 1
