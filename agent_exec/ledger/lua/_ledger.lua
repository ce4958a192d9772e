-- Shared by the scripts that write an execution. Each takes the same five keys, and the tenant and the execution first:
--   KEYS[1] execution  HASH    KEYS[2] streaming STREAM    KEYS[3] outbox ZSET
--   KEYS[4] outbox wake LIST   KEYS[5] pending ZSET
-- Fields of an execution: v, tenant, agent, task, global, message, digest, priority, wish, status, created_ms, runs_ms (where it runs later), started_ms,
-- finished_ms, cancel_ms, deadline_ms, sequence, notified, acked, response, callback (its URL), parent (of a child: its parent's id,
-- the name of the word that tells that of its end, and the agents above it, the outermost first), children (ids of those that have
-- not ended), linked (its Celery message came with links, which have a key of their own); and, for each step,
--   step:<name>    JSON {state: queued|waiting|running|done, fence, lease_ms, attempts, retries, parent, worker,
--                  claim (what its claim called itself), due_ms (when it last waited), looks (hints sent again since its claim),
--                  note (what it said of itself when it last waited, or was marked), awaits (the word for which it waits now),
--                  awaited (and for which it last did)}
--   hold:<name>    the fence of the attempt that runs, only while it runs: what tell_pieces.lua, the busiest script, needs to know
--   pieces:<name>  how many pieces of text the last attempt has streamed, until the step is done
--   said:<name>    what was last told without a number, until the step is done
--   result:<name>  JSON journaled by the step, once
--   awaits:<name>, word:<name>   the step that awaits the word <name>, or did; and the word, once it was sent
--   expected:<name>, joined:<name>   how many steps the step <name> waits for, and how many of them are done, until all are
--   later:<name>   JSON list of those of them that were not created at once: each that is done creates the next one
-- An execution keeps the version that it was accepted with. A newer one may add to this and mean other things by a result; what it
-- keeps is enough to cancel, prioritise and look after the steps of an execution that only a newer release may run.
local tenant, execution = ARGV[1], ARGV[2]

local function write_step(step, fields)
  redis.call('HSET', KEYS[1], 'step:' .. step, cjson.encode(fields))
end

-- Have the step looked at then, and not before.
local function look_at(step, at_ms)
  redis.call('ZADD', KEYS[5], at_ms, member(tenant, execution, step))
end

-- Have the notifier look. Where it is to look already it is awake, or has been woken.
local function announce(now)
  if redis.call('ZADD', KEYS[3], 'NX', now, tenant .. ' ' .. execution) == 1 and redis.call('LLEN', KEYS[4]) == 0 then
    redis.call('LPUSH', KEYS[4], '1')
  end
end

-- Where an event comes to be: the next sequence, the stream, the notifier's attention. (tell_pieces.lua does the same for many.)
local function append(name, event, now)
  local sequence = redis.call('HINCRBY', KEYS[1], 'sequence', 1)
  redis.call('XADD', KEYS[2], string.format('%d-0', sequence), 'event', name, 'at_ms', string.format('%d', now), 'data', event)
  announce(now)
end

-- A step with `due_ms` waits until then; any other is queued, and its hint is looked for at `looked_at_ms`.
local function create_step(step, parent, looked_at_ms, due_ms)
  local state = due_ms and 'waiting' or 'queued'
  write_step(step, {state = state, due_ms = due_ms, fence = 0, lease_ms = 0, attempts = 0, retries = 0, parent = parent})
  look_at(step, looked_at_ms)
end

-- Visit each step. There are 1,102 at most (contract/agent.py bounds turns and tool calls), and no script that runs more often than
-- a person asks or an execution ends does this.
local function each_step(key, visit)
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local step = string.match(field, '^step:(.*)$')
    if step then visit(step) end
  end
end
