-- Ask for the end of a batch: no further item is submitted, and what has been will be cancelled.
-- KEYS 1–9 as in _batch.lua
-- ARGV 1 tenant, 2 batch, 3 one that ends is kept for ms, 4 keep its callback for ms
-- Returns requested | gone | over
-- include: ../../ledger/lua/_state.lua
-- include: ../../callbacks/lua/_create.lua
-- include: _batch.lua
local own = own_of(KEYS)
local fields = read_batch(own.record)
if not fields or not fields.sealed_ms then return 'gone' end
if fields.finished_ms then return 'over' end
if fields.cancel_ms then return 'requested' end
local now = clock_ms()
redis.call('HSET', own.record, 'cancel_ms', now)
fields.cancel_ms = now
if not end_if_done(own, ARGV[2], fields, now, ARGV[3], ARGV[4]) then redis.call('ZADD', own.due, now, ARGV[1] .. ' ' .. ARGV[2]) end
return 'requested'
