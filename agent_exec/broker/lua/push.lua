-- Queue one message, unless its tag is queued or un-acked already.
-- KEYS[1] root
-- ARGV queue, tag, priority 0-9, aging_us, message
-- Returns 1, or 0 where the tag is known: nothing changed.
-- include: _keys.lua
-- include: _queue.lua
local queue, tag, priority, aging_us, message = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
if call('HEXISTS', RECORD, tag) == 1 then return 0 end
local record = {enqueued_us = tick_us(), priority = priority, deliveries = 0, faults = 0, queue = queue}
record.score = score_of(record, aging_us)
write_record(tag, record)
call('HSET', MESSAGE, tag, message)
enqueue(tag, record)
return 1
