-- Give one's own lease back, so that the next notifier need not wait for its end.
-- KEYS[1] notifier's lease STRING
-- ARGV 1 who asks
-- Returns 1, or 0 where another holds it, or nobody
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
