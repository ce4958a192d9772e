-- Say what to do for a batch: which items to submit now, or, of a cancelled one, which to cancel; and look at it again later, should
-- who does it die.
-- KEYS 1–9 as in _batch.lua; KEYS[10] shares HASH of the fair queue
-- ARGV 1 tenant, 2 batch, 3 so many items of all the tenant's batches may be open at once, 4 at most so many items at once,
--      5 and so many bytes, but for the first, 6 again after ms
-- Returns {submit, index of the first, item…} | {cancel, index…} | {rest}
-- include: ../../ledger/lua/_state.lua
-- include: ../../callbacks/lua/_create.lua
-- include: _batch.lua
local own, entry = own_of(KEYS), ARGV[1] .. ' ' .. ARGV[2]
local fields = read_batch(own.record)
if not fields or not fields.sealed_ms or fields.finished_ms then
  redis.call('ZREM', own.due, entry)
  return {'rest'}
end

-- How many items of this batch may be open. Other work of the tenant finds half of what it may have in flight free; where there are
-- more batches than room, the oldest have one each.
local function share()
  local cap = tonumber(string.match(redis.call('HGET', KEYS[10], ARGV[1]) or '', ' (%d+)$') or math.huge)
  local all, batches = math.max(1, math.floor(math.min(ARGV[3], cap / 2))), still_open(own.open, own.record, ARGV[2])
  if all >= #batches then return math.floor(all / math.max(1, #batches)) end
  for rank = 1, all do
    if batches[rank] == ARGV[2] then return 1 end
  end
  return 0
end

local next_item, last = tonumber(fields.next), last_of(fields)
local open = math.max(0, next_item - fields.completed - fields.failed)
local again_ms = clock_ms() + ARGV[6]
if next_item < last then
  local room = math.min(ARGV[4], last - next_item)
  -- What is left of a cancelled one may be there already, or never will be: it is submitted to be cancelled.
  if not fields.cancel_ms then room = math.min(room, share() - open) end
  if room < 1 then
    if open > 0 then
      redis.call('ZREM', own.due, entry) -- the next item that ends brings it back
    else
      redis.call('ZADD', own.due, again_ms, entry) -- it waits for another batch to end
    end
    return {'rest'}
  end
  local reply, bytes = {'submit', next_item}, 0
  for index = next_item, next_item + room - 1 do
    local item = redis.call('LINDEX', own.items, index)
    bytes = bytes + #item
    if #reply > 2 and bytes > tonumber(ARGV[5]) then break end
    reply[#reply + 1] = item
  end
  -- Whoever submits them may die before it says that it has: a cancel has to know which may be there.
  local taken = next_item + #reply - 2
  if taken > tonumber(fields.taken) then redis.call('HSET', own.record, 'taken', taken) end
  redis.call('ZADD', own.due, again_ms, entry)
  return reply
end
if not fields.cancel_ms then
  redis.call('ZREM', own.due, entry)
  return {'rest'}
end
local reply = {'cancel'}
for index = 0, last - 1 do
  if redis.call('HEXISTS', own.results, index) == 0 then reply[#reply + 1] = index end
end
redis.call('ZADD', own.due, again_ms, entry)
return reply
