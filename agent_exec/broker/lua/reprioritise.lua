-- Change the priority of a message, keeping its age.
-- KEYS[1] root
-- ARGV tag, priority 0-9, aging_us
-- Returns 1 where it waits, 0 where it does not; one in a worker's hands has the new priority should it come back.
-- include: _keys.lua
-- include: _queue.lua
local tag = ARGV[1]
local record = read_record(tag)
if not record then return 0 end
record.priority = tonumber(ARGV[2])
record.score = score_of(record, tonumber(ARGV[3]))
write_record(tag, record)
if not call('ZSCORE', LEAF .. record.queue, tag) then return 0 end
call('ZADD', LEAF .. record.queue, record.score, tag)
return 1
