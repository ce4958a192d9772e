-- What is known of a message beside its text: `score enqueued_us priority deliveries faults queue`, from push to settlement.

local function pack_record(record)
  return table.concat({record.score, text(record.enqueued_us), record.priority, record.deliveries, record.faults,
                       record.queue}, ' ')
end

local function unpack_record(packed)
  local score, enqueued_us, priority, deliveries, faults, queue =
    string.match(packed, '^(%S+) (%d+) (%d) (%d+) (%d+) (.*)$')
  return {score = score, enqueued_us = tonumber(enqueued_us), priority = tonumber(priority),
          deliveries = tonumber(deliveries), faults = tonumber(faults), queue = queue}
end

-- Each level of priority is worth `aging_us` of waiting.
local function score_of(record, aging_us) return text(record.enqueued_us - record.priority * aging_us) end
