-- Shared by the scripts with which a running step ends its attempt. ARGV 3 is the step, 4 the fence that its claim handed out.
local step, fence = ARGV[3], tonumber(ARGV[4])

-- May the caller write? Returns the standing and nil, or nil and the refusal: gone, over, fenced, or done: the attempt has ended by
-- this very write, whose reply was lost, or another of its own.
local function held(now)
  local found = standing(KEYS[1], tenant, step, now)
  if not found or found.state == 'absent' then return nil, 'gone' end
  if found.state == 'over' then return nil, 'over' end
  if found.step.fence ~= fence then return nil, 'fenced' end
  if found.state ~= 'running' and found.state ~= 'expired' then return nil, 'done' end
  return found, nil
end

-- The attempt is over, and the step is not: from here on it stands as `fields` say.
local function put_back(fields, looked_at_ms)
  fields.lease_ms = 0
  write_step(step, fields)
  redis.call('HDEL', KEYS[1], 'hold:' .. step)
  look_at(step, looked_at_ms)
end

-- Journal the result; from here on the step never runs again.
local function journal(fields, result)
  fields.state, fields.lease_ms = 'done', 0
  write_step(step, fields)
  redis.call('HSET', KEYS[1], 'result:' .. step, result)
  redis.call('HDEL', KEYS[1], 'hold:' .. step, 'pieces:' .. step, 'said:' .. step)
  redis.call('ZREM', KEYS[5], member(tenant, execution, step))
end

-- ARGV[at] counts the events; each is a name and its JSON.
local function append_all(at, now)
  for index = at + 1, at + ARGV[at] * 2, 2 do append(ARGV[index], ARGV[index + 1], now) end
end
