-- Keep the Celery result of a message that was not taken in, unless its id stands for an execution: that one has its own.
-- KEYS[1] Celery's result STRING; KEYS[2] tenant of the execution STRING
-- ARGV 1 Celery's result JSON, 2 keep it for ms
-- Returns 1, or 0 where nothing was kept
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if not redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') then return 0 end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
