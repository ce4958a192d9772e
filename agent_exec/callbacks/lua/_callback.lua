-- Shared by the scripts that change one callback. Each takes the same five keys, and the tenant and the callback's id first:
--   KEYS[1] callback HASH   KEYS[2] the tenant's waiting ZSET   KEYS[3] its sending ZSET   KEYS[4] its dead ZSET   KEYS[5] callbacks ZSET
-- Fields of a callback: tenant, url, body (until it is delivered), state: waiting|sending|delivered|dead, fence (of the last try),
-- attempts (tries with an outcome), created_ms, due_ms, last_ms, fault ('' for none), http_status ('' for none).
local tenant, id = ARGV[1], ARGV[2]

-- May the caller say what its try came to? Returns nil, or the refusal: gone, fenced (another has it), or done: it has said so before.
-- One whose lease has lapsed may, while nobody else has begun: what it says is true.
local function refused(fence)
  local owner, state, its = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'state', 'fence'))
  if owner ~= tenant then return 'gone' end
  if its ~= fence then return 'fenced' end
  if state ~= 'sending' then return 'done' end
end

-- From here on nobody sends it, or it waits until then.
local function put(state, keep_ms, exact, due_ms)
  redis.call('HSET', KEYS[1], 'state', state, 'due_ms', due_ms or '')
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('PEXPIRE', KEYS[1], keep_ms)
  if due_ms then
    redis.call('ZADD', KEYS[2], due_ms, id)
    redis.call('PEXPIRE', KEYS[2], keep_ms)
  end
  next_look(KEYS[5], KEYS[2], KEYS[3], tenant, false, exact)
end
