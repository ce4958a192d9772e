-- Append events of a running step, once by each telling: progress. (Streamed text: tell_pieces.lua.)
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 what this telling calls itself, 6 number of events, then name and JSON each
-- Returns told | gone | fenced
-- include: _state.lua
-- include: _ledger.lua
local step = ARGV[3]
local owner, holder, said = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'hold:' .. step, 'said:' .. step))
if owner ~= tenant then return 'gone' end
if holder ~= ARGV[4] then return 'fenced' end
if said == ARGV[5] then return 'told' end -- before, and the reply was lost
local now = clock_ms()
for index = 7, 6 + ARGV[6] * 2, 2 do append(ARGV[index], ARGV[index + 1], now) end
redis.call('HSET', KEYS[1], 'said:' .. step, ARGV[5])
return 'told'
