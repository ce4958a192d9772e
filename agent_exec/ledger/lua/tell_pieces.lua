-- Append pieces of streamed text: what all streams of a worker have gathered. The busiest script: it decodes nothing, and asks of a
-- step only whether it is still the caller's. Each piece stands for itself, whatever becomes of the others.
-- KEYS[1] outbox ZSET; KEYS[2] outbox wake LIST; then two a piece: execution HASH, streaming STREAM
-- ARGV 1 event name; then six a piece: tenant, execution, step, fence, number of the piece (from 1 within an attempt), event JSON
-- Returns a list, a verdict a piece: told | gone | fenced
-- include: _state.lua
local now = clock_ms()
local at_ms, verdicts, entries = string.format('%d', now), {}, {}
for index = 3, #KEYS, 2 do
  local key, first = KEYS[index], index * 3 - 7
  local tenant, execution, step, fence, piece, event = unpack(ARGV, first, first + 5)
  local owner, sequence, holder, pieces =
    unpack(redis.call('HMGET', key, 'tenant', 'sequence', 'hold:' .. step, 'pieces:' .. step))
  local verdict = 'told'
  if owner ~= tenant then
    verdict = 'gone'
  elseif holder ~= fence then
    verdict = 'fenced'
  elseif tonumber(piece) > tonumber(pieces or 0) then -- else it was told before, and the reply was lost
    local own = string.format('%d', sequence + 1)
    redis.call('XADD', KEYS[index + 1], own .. '-0', 'event', ARGV[1], 'at_ms', at_ms, 'data', event)
    redis.call('HSET', key, 'sequence', own, 'pieces:' .. step, piece)
    entries[#entries + 1], entries[#entries + 2] = at_ms, tenant .. ' ' .. execution
  end
  verdicts[#verdicts + 1] = verdict
end
-- The notifier's attention, as in _ledger.lua.
if #entries > 0 and redis.call('ZADD', KEYS[1], 'NX', unpack(entries)) > 0 and redis.call('LLEN', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], '1')
end
return verdicts
