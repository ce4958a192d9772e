-- Note that items have been submitted. Who says so asks at once what is next.
-- KEYS 1–9 as in _batch.lua
-- ARGV 1 tenant, 2 batch, 3 index of the first of them, 4 of the one behind the last, 5 forgotten after ms unless it ends or is fed,
--      6 one that ends is kept for ms, 7 keep its callback for ms
-- Returns whether this was the one to say so
-- include: ../../ledger/lua/_state.lua
-- include: ../../callbacks/lua/_create.lua
-- include: _batch.lua
local own = own_of(KEYS)
local fields = read_batch(own.record)
if not fields or fields.finished_ms or fields.next ~= ARGV[3] then return false end
redis.call('HSET', own.record, 'next', ARGV[4])
fields.next = ARGV[4]
for _, key in ipairs({own.record, own.items, own.results, own.open}) do redis.call('PEXPIRE', key, ARGV[5]) end
end_if_done(own, ARGV[2], fields, clock_ms(), ARGV[6], ARGV[7])
return true
