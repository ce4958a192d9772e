-- Shared by the scripts that a running step calls: is the caller still the one that may write?
-- Returns the step and nil, or nil and the refusal: gone, over, fenced, done (its own write, repeated after a lost reply).
local function held(tenant, step, fence)
  local status, owner = unpack(redis.call('HMGET', KEYS[1], 'status', 'tenant'))
  if owner ~= tenant then return nil, 'gone' end
  local fields = read_step(step)
  if not fields then return nil, 'gone' end
  if fields.state == 'done' and fields.fence == fence then return nil, 'done' end
  if is_over(status) then return nil, 'over' end
  if fields.state ~= 'running' or fields.fence ~= fence then return nil, 'fenced' end
  return fields, nil
end

-- The attempt is over, whatever comes next.
local function let_go(step)
  redis.call('HDEL', KEYS[1], 'hold:' .. step)
end

-- Journal the result; from here on the step never runs again.
local function journal(tenant, execution, step, fields, result)
  fields.state, fields.lease_ms = 'done', 0
  write_step(step, fields)
  let_go(step)
  redis.call('HSET', KEYS[1], 'result:' .. step, result)
  redis.call('ZREM', KEYS[5], member(tenant, execution, step))
end

-- ARGV[at] counts the events; each is a name and its JSON. Returns the index behind them.
local function append_all(tenant, execution, at, now)
  local count = tonumber(ARGV[at])
  for index = 1, count do
    append(tenant, execution, ARGV[at + index * 2 - 1], ARGV[at + index * 2], now)
  end
  return at + count * 2 + 1
end
