-- End an execution: journal the last step, append its events and the one terminal event, publish the response, and tell all who
-- are concerned: its children, whose end is asked for; its parent, which is sent the word that it has ended, its own id; its
-- batch; who asked for a callback; and what it is linked to in a canvas.
-- KEYS 1–5 as in _ledger.lua; KEYS[6] responses STREAM; KEYS[7] Celery's result STRING; KEYS[8] tenant of the execution STRING;
--      KEYS[9] links STRING; KEYS[10] unsent links ZSET; KEYS[11] callback HASH; KEYS[12] the tenant's waiting callbacks ZSET;
--      KEYS[13] callbacks ZSET; KEYS[14] callbacks wake LIST
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 status, 7 response JSON, 8 Celery's result JSON,
--      9 retention in ms, 10 1 if this is the end that a cancel asks for, else 0,
--      11 prefix of an execution's key, 12 look for links that were not sent after ms, 13 keep a callback for ms,
--      14 what the key of every batch begins with, 15 number of events (the terminal one is the last), then name and JSON each
-- Returns {finished} | {finished, hint of the parent's step, as in _hint.lua} |
--         {cancelled} (another end was asked for meanwhile: nothing is written) | {gone} | {over} | {fenced} | {done}
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
-- include: _hint.lua
-- include: _word.lua
-- include: _cancel.lua
-- include: ../../callbacks/lua/_create.lua
-- include: ../../batches/lua/_batch.lua

local function end_steps()
  each_step(KEYS[1], function(open)
    redis.call('ZREM', KEYS[5], member(tenant, execution, open))
    redis.call('HDEL', KEYS[1], 'hold:' .. open)
  end)
end

-- What Celery keeps as the result of an execution with links names them: who sends them writes it.
local function tell_celery(is_linked, now)
  if is_linked then return redis.call('ZADD', KEYS[10], now + ARGV[12], tenant .. ' ' .. execution) end
  redis.call('SET', KEYS[7], ARGV[8])
  redis.call('PUBLISH', KEYS[7], ARGV[8])
end

local function tell_caller(url, now)
  local finished_at = cjson.decode(ARGV[7]).finished_at
  local body = string.format('{"type":"agent_execution.%s","timestamp":"%s","data":', ARGV[6], finished_at) .. ARGV[7] .. '}'
  local own = {record = KEYS[11], waiting = KEYS[12], all = KEYS[13], wake = KEYS[14]}
  create_callback(own, tenant, execution, url, body, now, ARGV[13])
end

-- Take this one off its parent's list of open children, and send it the word. Returns the hint of the step that it has go on, if any.
local function tell_parent(parent, now)
  local id, name = string.match(parent, '^(%S+) (%S+)')
  local key = ARGV[11] .. tenant .. ':' .. id
  local agent, priority, siblings = unpack(redis.call('HMGET', key, 'agent', 'priority', 'children'))
  local open = {}
  for sibling in string.gmatch(siblings or '', '%S+') do
    if sibling ~= execution then open[#open + 1] = sibling end
  end
  if #open > 0 then
    redis.call('HSET', key, 'children', table.concat(open, ' '))
  else
    redis.call('HDEL', key, 'children')
  end
  local _, _, awaiting, fields = send_word(key, KEYS[5], tenant, id, name, execution, true, now)
  return awaiting and hint(tenant, id, agent, priority, awaiting, fields)
end

-- `item`: its batch's id and its index there. All keys of a batch begin with ARGV[14]; its callback is named as this one's is.
local function tell_batch(item, now)
  local batch, index = string.match(item, '^(%S+) (%d+)$')
  local root, names = ARGV[14], tenant .. ':' .. batch
  local own = {
    record = root .. ':' .. names, items = root .. '_items:' .. names, results = root .. '_results:' .. names,
    due = root .. 'es', open = root .. 'es_open:' .. tenant,
    callback = {record = string.sub(KEYS[11], 1, -#execution - 1) .. batch, waiting = KEYS[12], all = KEYS[13], wake = KEYS[14]},
  }
  end_item(own, batch, index, ARGV[6], ARGV[7], now, ARGV[9], ARGV[13])
end

local now = clock_ms()
local found, refusal = held(now)
if refusal then return {refusal} end
if found.cancelled and ARGV[10] == '0' then return {'cancelled'} end
journal(found.step, ARGV[5])
append_all(15, now)
redis.call('HSET', KEYS[1], 'status', ARGV[6], 'finished_ms', now, 'response', ARGV[7])
end_steps()
redis.call('XADD', KEYS[6], '1-0', 'response', ARGV[7])
local url, linked, batch, children, parent =
  unpack(redis.call('HMGET', KEYS[1], 'callback', 'linked', 'batch', 'children', 'parent'))
tell_celery(linked, now)
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[6], KEYS[7], KEYS[8], KEYS[9]}) do redis.call('PEXPIRE', key, ARGV[9]) end
if url then tell_caller(url, now) end
if batch then tell_batch(batch, now) end
for child in string.gmatch(children or '', '%S+') do cancel(ARGV[11], tenant, child, now) end
return {'finished', parent and tell_parent(parent, now) or nil}
