-- Note that an item will be no execution, and why.
-- KEYS 1–9 as in _batch.lua
-- ARGV 1 tenant, 2 batch, 3 index, 4 error JSON, 5 a batch that ends is kept for ms, 6 keep its callback for ms
-- Returns nothing
-- include: ../../ledger/lua/_state.lua
-- include: ../../callbacks/lua/_create.lua
-- include: _batch.lua
end_item(own_of(KEYS), ARGV[2], ARGV[3], 'refused', ARGV[4], clock_ms(), ARGV[5], ARGV[6])
