-- What becomes of a delivery that is not done, behind _record.lua, _enqueue.lua and _settle.lua.
local DEAD_EXPIRES_S = 14 * 86400

local function bury(letter, message, now, keep, max_bytes)
  letter.at_ms, letter.bytes = math.floor(now / 1000), #message
  letter.message = string.sub(message, 1, max_bytes)
  call('LPUSH', DEAD, cjson.encode(letter))
  call('LTRIM', DEAD, 0, keep - 1)
  call('EXPIRE', DEAD, DEAD_EXPIRES_S)
end

local function bury_tag(tag, record, reason, now, keep, max_bytes)
  bury({reason = reason, queue = record.queue, tag = tag, deliveries = record.deliveries},
       call('HGET', MESSAGE, tag) or '', now, keep, max_bytes)
  forget(tag)
end

-- Put a delivery back to its own place. A fault is a return that its holder's death or refusal caused.
local function give_back(delivery, fault, max_faults, now, keep, max_bytes)
  local tag, packed = unlease(delivery)
  if not tag then return 0 end
  local record = unpack_record(packed)
  record.faults = record.faults + fault
  if record.faults > max_faults then
    bury_tag(tag, record, 'came back ' .. record.faults .. ' times: each worker that took it died or refused it',
             now, keep, max_bytes)
  else
    call('HSET', RECORD, tag, pack_record(record))
    enqueue(tag, record.score, record.queue)
  end
  return 1
end
