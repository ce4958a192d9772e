-- Queue one message, unless its tag is queued or un-acked already.
-- KEYS[1] root
-- ARGV queue, tag, priority 0-9, aging_us, message
-- Returns 1, or 0 where the tag is known: nothing changed.
-- include: _keys.lua
-- include: _queue.lua
-- include: _clock.lua
-- include: _record.lua
-- include: _enqueue.lua
local queue, tag, message = ARGV[1], ARGV[2], ARGV[5]
if call('HSETNX', MESSAGE, tag, message) == 0 then return 0 end
local record = {enqueued_us = tick_us(now_us()), priority = tonumber(ARGV[3]), deliveries = 0, faults = 0, queue = queue}
record.score = score_of(record, tonumber(ARGV[4]))
call('HSET', RECORD, tag, pack_record(record))
enqueue(tag, record.score, queue)
return 1
