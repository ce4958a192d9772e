-- Count the waiting messages of a family (its plain lists included) or of a queue.
-- KEYS[1] root
-- ARGV queue
-- Returns the number.
-- include: _keys.lua
-- include: _queue.lua
-- include: _plain.lua
local queue = ARGV[1]
if queue ~= family_of(queue) then
  if queue == tenant_of(queue) then return tonumber(call('HGET', WAITING, queue)) or 0 end
  return call('ZCARD', LEAF .. queue)
end
return (tonumber(call('HGET', WAITING, queue)) or 0) + unseen(queue)
