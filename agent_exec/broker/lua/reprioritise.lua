-- Change the priority of a message, keeping its age.
-- KEYS[1] root
-- ARGV tag, priority 0-9, aging_us
-- Returns 1 where it waits, 0 where it does not; one in a worker's hands has the new priority should it come back.
-- include: _keys.lua
-- include: _queue.lua
-- include: _clock.lua
-- include: _record.lua
local tag = ARGV[1]
local packed = call('HGET', RECORD, tag)
if not packed then return 0 end
local record = unpack_record(packed)
record.priority = tonumber(ARGV[2])
record.score = score_of(record, tonumber(ARGV[3]))
call('HSET', RECORD, tag, pack_record(record))
if not call('ZSCORE', LEAF .. record.queue, tag) then return 0 end
call('ZADD', LEAF .. record.queue, record.score, tag)
return 1
