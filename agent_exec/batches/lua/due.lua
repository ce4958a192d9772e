-- Take the batches that want feeding, and look at each again later, should who took it die.
-- KEYS[1] due ZSET
-- ARGV 1 at most so many, 2 again after ms
-- Returns tenant and batch of each
-- include: ../../ledger/lua/_state.lua
local now = clock_ms()
local reply = {}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZADD', KEYS[1], now + ARGV[2], entry)
  reply[#reply + 1] = {string.match(entry, '^(%S+) (%S+)$')}
end
return reply
