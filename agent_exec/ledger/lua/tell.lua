-- Append events of a running step: progress, and pieces of streamed text. The busiest script: it decodes nothing, and asks of the
-- step only whether it is still the caller's.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 number of the piece, from 1 within an attempt (0: no piece),
--      6 what this telling calls itself, if it is no piece, 7 number of events, then name and JSON each
-- Returns told | gone | fenced
-- include: _state.lua
-- include: _ledger.lua
local step, fence, piece = unpack(ARGV, 3, 5)
local owner, sequence, holder, pieces, said = unpack(
  redis.call('HMGET', KEYS[1], 'tenant', 'sequence', 'hold:' .. step, 'pieces:' .. step, 'said:' .. step))
if owner ~= tenant then return 'gone' end
if holder ~= fence then return 'fenced' end
-- Told before, and the reply was lost.
if piece == '0' and said == ARGV[6] or piece ~= '0' and tonumber(piece) <= tonumber(pieces or 0) then return 'told' end
local now, count = clock_ms(), tonumber(ARGV[7])
for index = 1, count do
  redis.call('XADD', KEYS[2], string.format('%d-0', sequence + index),
    'event', ARGV[6 + index * 2], 'at_ms', string.format('%d', now), 'data', ARGV[7 + index * 2])
end
redis.call('HINCRBY', KEYS[1], 'sequence', count)
if piece == '0' then
  redis.call('HSET', KEYS[1], 'said:' .. step, ARGV[6])
else
  redis.call('HSET', KEYS[1], 'pieces:' .. step, piece)
end
announce(now)
return 'told'
