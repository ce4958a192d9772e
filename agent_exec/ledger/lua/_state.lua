-- Shared by every script that decides: the clock, and in which state a step is. What an event comes to in each of these states
-- is the table in life.py; the scripts decide by the state's name alone.

-- All time is Redis's: no machine's own clock counts.
local function clock_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_over(status)
  return status == 'completed' or status == 'failed'
end

-- A member of `pending`: when its score is reached the step is looked at, whatever became of its last hint.
local function member(tenant, execution, step)
  return tenant .. ' ' .. execution .. ' ' .. step
end

local function state_of(step, status, ends_at_ms, now)
  if not step then return 'absent' end
  if step.state == 'done' then return 'done' end
  if is_over(status) then return 'over' end
  if step.state == 'running' and step.lease_ms <= now then return 'expired' end
  if step.state == 'waiting' then
    if math.min(step.due_ms, ends_at_ms) <= now then return 'due' end
    return step.awaits and 'awaiting' or 'waiting'
  end
  return step.state
end

-- Read what decides about one step, or nil where this tenant has no such execution. `ends_at_ms`: when the execution has to end
-- whatever its steps say, because its end was asked for or its deadline passes; nobody waits beyond it.
local function standing(key, tenant, step, now)
  local owner, status, cancel_ms, deadline_ms, version, packed =
    unpack(redis.call('HMGET', key, 'tenant', 'status', 'cancel_ms', 'deadline_ms', 'v', 'step:' .. step))
  if owner ~= tenant then return nil end
  local fields = packed and cjson.decode(packed)
  local ends_at_ms = tonumber(cancel_ms or deadline_ms or math.huge)
  return {
    status = status, cancelled = cancel_ms and true, ends_at_ms = ends_at_ms, version = tonumber(version),
    step = fields, state = state_of(fields, status, ends_at_ms, now),
  }
end
