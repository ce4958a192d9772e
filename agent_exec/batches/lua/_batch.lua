-- Shared by the scripts that change a batch; wants _create.lua of the callbacks before it. Those that may end one take the same nine keys:
--   KEYS[1] batch HASH             KEYS[2] items LIST                       KEYS[3] results HASH
--   KEYS[4] due ZSET               KEYS[5] the tenant's open batches ZSET   KEYS[6] callback HASH
--   KEYS[7] waiting callbacks ZSET KEYS[8] callbacks ZSET                   KEYS[9] callbacks wake LIST
-- Fields of a batch: tenant, digest, count, created_ms, sealed_ms (all its items are there), taken (items before this one may have been
-- submitted), next (and those before this one have been), completed, failed (how many items have ended so), cancel_ms, finished_ms,
-- keep_ms (how long the execution of an item is kept at the longest), callback (the URL that is told the end, if any).
-- What an item came to: its status, a space and JSON: `completed` or `failed` and the final response, `refused` and the error of a
-- request that became no execution.

local function own_of(keys)
  return {
    record = keys[1], items = keys[2], results = keys[3], due = keys[4], open = keys[5],
    callback = {record = keys[6], waiting = keys[7], all = keys[8], wake = keys[9]},
  }
end

-- How many items are submitted in all: a cancelled batch submits no more than may have been already.
local function last_of(fields)
  return tonumber(fields.cancel_ms and fields.taken or fields.count)
end

local function read_batch(record)
  local fields, row = {}, redis.call('HGETALL', record)
  for place = 1, #row, 2 do fields[row[place]] = row[place + 1] end
  return fields.tenant and fields
end

-- The tenant's batches that are not over, the oldest first; `record` is the key of the one with the id `batch`. Forgets those that
-- have expired.
local function still_open(open, record, batch)
  local prefix, found = string.sub(record, 1, -#batch - 1), {}
  for _, one in ipairs(redis.call('ZRANGE', open, 0, -1)) do
    if redis.call('EXISTS', prefix .. one) == 1 then
      found[#found + 1] = one
    else
      redis.call('ZREM', open, one)
    end
  end
  return found
end

-- A moment as text. Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function iso(ms)
  local day_ms = 86400000
  local shifted = math.floor(ms / day_ms) + 719468
  local era, of_day_ms = math.floor(shifted / 146097), ms % day_ms
  local day_of_era = shifted - era * 146097
  local year_of_era = math.floor(
    (day_of_era - math.floor(day_of_era / 1460) + math.floor(day_of_era / 36524) - math.floor(day_of_era / 146096)) / 365)
  local day_of_year = day_of_era - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local from_march = math.floor((5 * day_of_year + 2) / 153)
  local month = from_march < 10 and from_march + 3 or from_march - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month,
    day_of_year - math.floor((153 * from_march + 2) / 5) + 1, math.floor(of_day_ms / 3600000),
    math.floor(of_day_ms / 60000) % 60, math.floor(of_day_ms / 1000) % 60, of_day_ms % 1000)
end

-- What the callback says: the batch as contract/batch.py has it.
local function told(batch, fields, now)
  return string.format(
    '{"type":"agent_execution.batch.completed","timestamp":"%s","data":{"batch_id":"%s","tenant_id":"%s","status":"%s","count":%d,'
      .. '"submitted":%d,"completed":%d,"failed":%d,"cancelled":%d,"cancel_requested":%s,"created_at":"%s","finished_at":"%s"}}',
    iso(now), batch, fields.tenant, fields.cancel_ms and 'cancelled' or 'completed', fields.count, fields.next, fields.completed,
    fields.failed, fields.count - last_of(fields), fields.cancel_ms and 'true' or 'false', iso(tonumber(fields.created_ms)), iso(now))
end

-- End the batch if nothing of it is left to do. It is kept for as long as its executions are, for its id names them; `keep_ms` where
-- it has none. Returns whether it has ended.
local function end_if_done(own, batch, fields, now, keep_ms, keep_callback_ms)
  local last = last_of(fields)
  if tonumber(fields.next) < last or fields.completed + fields.failed < last then return false end
  redis.call('HSET', own.record, 'finished_ms', now)
  redis.call('PEXPIRE', own.record, fields.keep_ms or keep_ms)
  redis.call('PEXPIRE', own.results, fields.keep_ms or keep_ms)
  redis.call('DEL', own.items)
  redis.call('ZREM', own.due, fields.tenant .. ' ' .. batch)
  redis.call('ZREM', own.open, batch)
  for _, other in ipairs(redis.call('ZRANGE', own.open, 0, -1)) do -- there is more room for them
    redis.call('ZADD', own.due, now, fields.tenant .. ' ' .. other)
  end
  if fields.callback then
    create_callback(own.callback, fields.tenant, batch, fields.callback, told(batch, fields, now), now, keep_callback_ms)
  end
  return true
end

-- Note what an item came to, and what that means for its batch. Only the first end of an item counts.
local function end_item(own, batch, index, status, text, now, keep_ms, keep_callback_ms)
  if redis.call('EXISTS', own.record) == 0 then return end
  if redis.call('HSETNX', own.results, index, status .. ' ' .. text) == 0 then return end
  redis.call('PEXPIRE', own.results, redis.call('PTTL', own.record))
  redis.call('HINCRBY', own.record, status == 'completed' and 'completed' or 'failed', 1)
  local fields = read_batch(own.record)
  if tonumber(keep_ms) > tonumber(fields.keep_ms or 0) then
    redis.call('HSET', own.record, 'keep_ms', keep_ms)
    fields.keep_ms = keep_ms
  end
  local is_being_cancelled = fields.cancel_ms and tonumber(fields.next) >= last_of(fields)
  if not end_if_done(own, batch, fields, now, keep_ms, keep_callback_ms) and not is_being_cancelled then
    redis.call('ZADD', own.due, now, fields.tenant .. ' ' .. batch)
  end
end
