-- Take the lease of the active notifier, or renew one's own.
-- KEYS[1] notifier's lease STRING
-- ARGV 1 who asks, 2 for how long, in ms
-- Returns 1, or 0 where another holds it
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
