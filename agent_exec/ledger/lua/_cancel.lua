-- Shared by the scripts that end executions: ask for the end of one, and of all below it. Durable: a step that runs learns of it from
-- its heartbeat; one that does not is due at once, and who looks after due work ends the execution there, past every queue and cap.
-- `prefix` is what the key of each execution begins with. Returns gone | completed | failed | requested.
local function cancel(prefix, tenant, execution, now)
  local key = prefix .. tenant .. ':' .. execution
  local owner, status, children = unpack(redis.call('HMGET', key, 'tenant', 'status', 'children'))
  if owner ~= tenant then return 'gone' end
  if is_over(status) then return status end
  redis.call('HSETNX', key, 'cancel_ms', now)
  each_step(key, function(step)
    local state = standing(key, tenant, step, now).state
    if state == 'queued' or state == 'due' then redis.call('ZADD', KEYS[5], now, member(tenant, execution, step)) end
  end)
  for child in string.gmatch(children or '', '%S+') do cancel(prefix, tenant, child, now) end
  return 'requested'
end
