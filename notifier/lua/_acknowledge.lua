-- Shared by the scripts that acknowledge: every event of an execution up to `sequence` need not be sent again.
-- Returns acked | gone | ahead (it was never sent, or is to be sent again)
local function acknowledge(unacked, prefix, tenant, execution, sequence)
  local key, member = prefix .. tenant .. ':' .. execution, tenant .. ' ' .. execution
  local owner, notified, acked = unpack(redis.call('HMGET', key, 'tenant', 'notified', 'acked'))
  if owner ~= tenant then
    redis.call('ZREM', unacked, member)
    return 'gone'
  end
  notified = tonumber(notified or 0)
  if sequence > notified then return 'ahead' end
  acked = math.max(sequence, tonumber(acked or 0))
  redis.call('HSET', key, 'acked', acked)
  if acked == notified then redis.call('ZREM', unacked, member) end
  return 'acked'
end
