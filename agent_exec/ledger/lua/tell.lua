-- Append events of a running step: progress, and pieces of streamed text. The busiest script: it decodes nothing.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 number of the piece, from 1 within an attempt (0: no piece),
--      6 number of events, then name and JSON each
-- Returns told | gone | over | fenced
-- include: _ledger.lua
local tenant, execution, step, fence, piece = unpack(ARGV, 1, 5)
local owner, status, sequence, holder, pieces = unpack(
  redis.call('HMGET', KEYS[1], 'tenant', 'status', 'sequence', 'hold:' .. step, 'pieces:' .. step))
if owner ~= tenant then return 'gone' end
if is_over(status) then return 'over' end
if holder ~= fence then return 'fenced' end
if piece ~= '0' and tonumber(piece) <= tonumber(pieces or 0) then return 'told' end
local now, count = clock_ms(), tonumber(ARGV[6])
for index = 1, count do
  redis.call('XADD', KEYS[2], string.format('%d-0', sequence + index),
    'event', ARGV[5 + index * 2], 'at_ms', string.format('%d', now), 'data', ARGV[6 + index * 2])
end
redis.call('HINCRBY', KEYS[1], 'sequence', count)
if piece ~= '0' then redis.call('HSET', KEYS[1], 'pieces:' .. step, piece) end
announce(tenant, execution, now)
return 'told'
