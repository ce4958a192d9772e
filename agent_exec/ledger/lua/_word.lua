-- Shared by the scripts that send a word to a step: the first one under a name stands, and the step that awaits it is due at once.
-- Returns gone | completed | failed | nobody | sent; with sent the word that stands, and the step that is due by it now and its
-- fields, if there is one. A reply that is lost loses no hint: the step is looked at now.
local function send_word(key, pending, tenant, execution, name, word, early, now)
  local owner, status, stands, step =
    unpack(redis.call('HMGET', key, 'tenant', 'status', 'word:' .. name, 'awaits:' .. name))
  if owner ~= tenant then return 'gone' end
  if stands then return 'sent', stands end
  if is_over(status) then return status end
  local found = step and standing(key, tenant, step, now)
  local awaited = found and found.state == 'awaiting' and found.step.awaits == name
  if not awaited and not early then return 'nobody' end
  redis.call('HSET', key, 'word:' .. name, word)
  if not awaited then return 'sent', word end
  found.step.due_ms = now
  redis.call('HSET', key, 'step:' .. step, cjson.encode(found.step))
  redis.call('ZADD', pending, now, member(tenant, execution, step))
  return 'sent', word, step, found.step
end
