-- Read a page of what the items of a batch came to, in their order.
-- KEYS[1] batch HASH; KEYS[2] results HASH
-- ARGV 1 index of the first, 2 at most so many, 3 and so many bytes, but for the first
-- Returns {number of items, 1 if it is over else 0, then what each came to, false for one that was never submitted} (of a batch that is
-- not over it ends before the first item that has not ended) | nothing where there is no such batch
local sealed, count, finished = unpack(redis.call('HMGET', KEYS[1], 'sealed_ms', 'count', 'finished_ms'))
if not sealed then return {} end
local reply, bytes = {tonumber(count), finished and 1 or 0}, 0
for index = tonumber(ARGV[1]), math.min(ARGV[1] + ARGV[2], count) - 1 do
  local result = redis.call('HGET', KEYS[2], index)
  if not result and not finished then break end
  bytes = bytes + (result and #result or 0)
  if #reply > 2 and bytes > tonumber(ARGV[3]) then break end
  reply[#reply + 1] = result
end
return reply
