-- Count what is left to do.
-- KEYS[1] outbox ZSET; KEYS[2] unacked ZSET
-- Returns {executions with events not sent, executions with events not acknowledged}
return {redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[2])}
