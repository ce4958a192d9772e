-- Store a schedule.
-- KEYS[1] schedule HASH; KEYS[2] due ZSET; KEYS[3] the tenant's schedules ZSET
-- ARGV 1 tenant, 2 schedule, 3 digest of the request, 4 cron line, 5 time zone, 6 request JSON, 7 1 if it may overlap itself, else 0,
--      8 when it is next due, in ms, 9 at most so many of a tenant
-- Returns created | replayed | mismatch | full
-- include: ../../ledger/lua/_state.lua
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest then return digest == ARGV[3] and 'replayed' or 'mismatch' end
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[9]) then return 'full' end
local now = clock_ms()
redis.call('HSET', KEYS[1], 'tenant', ARGV[1], 'digest', ARGV[3], 'cron', ARGV[4], 'timezone', ARGV[5], 'request', ARGV[6],
  'overlap', ARGV[7], 'next_ms', ARGV[8], 'created_ms', now)
redis.call('ZADD', KEYS[2], ARGV[8], ARGV[1] .. ' ' .. ARGV[2])
redis.call('ZADD', KEYS[3], now, ARGV[2])
return 'created'
