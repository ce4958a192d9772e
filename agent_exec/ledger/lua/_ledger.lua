-- Shared by the ledger's scripts. Each takes the same five keys:
--   KEYS[1] execution  HASH    KEYS[2] streaming STREAM    KEYS[3] outbox ZSET
--   KEYS[4] outbox wake LIST   KEYS[5] pending ZSET
-- Fields of an execution: v, tenant, agent, task, global, message, digest, priority, wish (if changed), status, created_ms, started_ms,
-- finished_ms, cancel_ms, deadline_ms, sequence, notified, acked, response; and, for each step,
--   step:<name>    JSON {state: queued|waiting|running|done, fence, lease_ms, attempts, retries, parent, worker,
--                  due_ms (while waiting)}
--   hold:<name>    the fence of the attempt that runs, only while it runs: what tell.lua, the busiest script, needs to know
--   pieces:<name>  how many pieces of text the last attempt has streamed
--   result:<name>  JSON journaled by the step, once
--   expected:<name>, joined:<name>   how many steps the step <name> waits for, and how many of them are done

local function clock_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function read_step(step)
  local packed = redis.call('HGET', KEYS[1], 'step:' .. step)
  return packed and cjson.decode(packed)
end

local function write_step(step, fields)
  redis.call('HSET', KEYS[1], 'step:' .. step, cjson.encode(fields))
end

-- A member of `pending`: when its score is reached the step's hint is sent again, whatever became of the last one.
local function member(tenant, execution, step)
  return tenant .. ' ' .. execution .. ' ' .. step
end

local function is_over(status)
  return status == 'completed' or status == 'failed'
end

-- Have the notifier look. Where it is to look already it is awake, or has been woken.
local function announce(tenant, execution, now)
  if redis.call('ZADD', KEYS[3], 'NX', now, tenant .. ' ' .. execution) == 1 and redis.call('LLEN', KEYS[4]) == 0 then
    redis.call('LPUSH', KEYS[4], '1')
  end
end

-- Where an event comes to be: the next sequence, the stream, the notifier's attention. (tell.lua does the same for many.)
local function append(tenant, execution, name, event, now)
  local sequence = redis.call('HINCRBY', KEYS[1], 'sequence', 1)
  redis.call('XADD', KEYS[2], string.format('%d-0', sequence), 'event', name, 'at_ms', string.format('%d', now), 'data', event)
  announce(tenant, execution, now)
end

local function create_step(tenant, execution, step, parent, looked_at_ms)
  write_step(step, {state = 'queued', fence = 0, lease_ms = 0, attempts = 0, retries = 0, parent = parent})
  redis.call('ZADD', KEYS[5], looked_at_ms, member(tenant, execution, step))
end
