-- Shared by the scripts that change what is due: when whoever sends looks at a tenant again. A tenant that has just been served
-- goes behind the others, however long its own have waited; one at its cap is looked at when a slot is free.
local function next_look(callbacks, waiting, sending, tenant, at_cap, exact)
  local lapse = redis.call('ZRANGE', sending, 0, 0, 'WITHSCORES')[2]
  local due = not at_cap and redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  local at_ms = math.min(tonumber(lapse or math.huge), tonumber(due or math.huge))
  if at_ms == math.huge then
    redis.call('ZREM', callbacks, tenant)
  else
    redis.call('ZADD', callbacks, math.max(at_ms, exact), tenant)
  end
end
