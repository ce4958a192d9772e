-- Count what is open, of the tenants that are looked at first, and what tries have come to.
-- KEYS[1] callbacks ZSET; KEYS[2] callbacks outcomes HASH; the tenants' ZSETs are found under the prefixes that keys.py spells
-- ARGV 1 at most so many tenants, 2 prefix of a tenant's waiting ZSET, 3 of its sending ZSET
-- Returns {waiting, sending, ms for which the first of them is overdue, then outcomes and their counts}
-- include: _clock.lua
local now = clock_ms()
local waiting, sending, late_ms = 0, 0, 0
for _, tenant in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  waiting = waiting + redis.call('ZCARD', ARGV[2] .. tenant)
  sending = sending + redis.call('ZCARD', ARGV[3] .. tenant)
  local first = redis.call('ZRANGE', ARGV[2] .. tenant, 0, 0, 'WITHSCORES')
  if first[2] then late_ms = math.max(late_ms, now - first[2]) end
end
return {waiting, sending, late_ms, unpack(redis.call('HGETALL', KEYS[2]))}
