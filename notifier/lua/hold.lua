-- Take the lease of the active notifier, or renew one's own, and say how its holder stands.
-- KEYS[1] notifier's lease STRING; KEYS[2] notifier's report STRING
-- ARGV 1 who asks, 2 for how long, in ms, 3 what it says of itself, 4 which is kept for so many ms
-- Returns 1, or 0 where another holds it
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1
