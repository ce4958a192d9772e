-- All items are there: from now on the batch is stored, and will be run.
-- KEYS[1] batch HASH; KEYS[2] items LIST; KEYS[3] due ZSET; KEYS[4] the tenant's open batches ZSET; KEYS[5] the tenant's batches ZSET
-- ARGV 1 tenant, 2 batch, 3 forgotten after ms, unless it is fed meanwhile, 4 at most so many open batches
-- Returns sealed (or was before) | short (items are missing) | full (others were sealed since this one was begun: it is forgotten)
-- include: ../../ledger/lua/_state.lua
-- include: ../../callbacks/lua/_create.lua
-- include: _batch.lua
local now, keep_ms = clock_ms(), tonumber(ARGV[3])
local count, sealed = unpack(redis.call('HMGET', KEYS[1], 'count', 'sealed_ms'))
if sealed then return 'sealed' end
if not count or redis.call('LLEN', KEYS[2]) ~= tonumber(count) then return 'short' end
if #still_open(KEYS[4], KEYS[1], ARGV[2]) >= tonumber(ARGV[4]) then
  redis.call('DEL', KEYS[1], KEYS[2])
  return 'full'
end
redis.call('HSET', KEYS[1], 'created_ms', now, 'sealed_ms', now)
redis.call('PEXPIRE', KEYS[1], keep_ms)
redis.call('PEXPIRE', KEYS[2], keep_ms)
redis.call('ZADD', KEYS[3], now, ARGV[1] .. ' ' .. ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - keep_ms)
for _, place in ipairs({4, 5}) do
  redis.call('ZADD', KEYS[place], now, ARGV[2])
  redis.call('PEXPIRE', KEYS[place], keep_ms)
end
return 'sealed'
