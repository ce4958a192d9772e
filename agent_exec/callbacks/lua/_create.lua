-- Shared by the scripts in which something ends that a caller wants to be told of: create its callback, in that very script.
-- `own` has the keys by name: record (callback HASH), waiting (the tenant's waiting callbacks ZSET), all (callbacks ZSET), wake (LIST).
-- The fields are told of in _callback.lua.
local function create_callback(own, tenant, id, url, body, now, keep_ms)
  redis.call('HSET', own.record, 'tenant', tenant, 'url', url, 'body', body, 'state', 'waiting', 'fence', 0, 'attempts', 0,
    'created_ms', now, 'due_ms', now)
  redis.call('ZADD', own.waiting, now, id)
  redis.call('PEXPIRE', own.record, keep_ms)
  redis.call('PEXPIRE', own.waiting, keep_ms)
  redis.call('ZADD', own.all, 'LT', now, tenant)
  if redis.call('LLEN', own.wake) == 0 then redis.call('LPUSH', own.wake, '1') end
end
