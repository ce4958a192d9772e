-- Begin a batch. Nothing of it runs before it is sealed, and until then it is soon forgotten.
-- KEYS[1] batch HASH; KEYS[2] the tenant's open batches ZSET
-- ARGV 1 tenant, 2 batch, 3 digest of the whole request, 4 number of items, 5 '' or the URL that is told the end,
--      6 forgotten after ms unless sealed, 7 at most so many open batches
-- Returns created (or begun before, with the same request) | sealed (so it was before) | mismatch | full
-- include: ../../callbacks/lua/_create.lua
-- include: _batch.lua
local digest, sealed = unpack(redis.call('HMGET', KEYS[1], 'digest', 'sealed_ms'))
if digest and digest ~= ARGV[3] then return 'mismatch' end
if sealed then return 'sealed' end
if digest then return 'created' end
if #still_open(KEYS[2], KEYS[1], ARGV[2]) >= tonumber(ARGV[7]) then return 'full' end
redis.call('HSET', KEYS[1], 'tenant', ARGV[1], 'digest', ARGV[3], 'count', ARGV[4], 'taken', 0, 'next', 0, 'completed', 0, 'failed', 0)
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'callback', ARGV[5]) end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 'created'
