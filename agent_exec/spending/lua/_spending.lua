-- Shared by every script of spending: days, and the attempts whose call is not settled.
-- KEYS[1] the tenant's open attempts HASH: a name → JSON list of {attempt, day, tokens, usd_micros, until_ms, lapsed}
-- KEYS[2] their names by when they are next looked at ZSET; KEYS[3] what the keys of the tenant's days begin with
--
-- A day is a HASH of counts, named by its number since 1970, UTC. What an attempt comes to is counted on the day on which it was
-- reserved. An attempt that nobody settled in its time has lapsed: it holds nothing back any more, and may still be settled
-- until it is forgotten.
local DAY_MS = 86400000
local FORGOTTEN_AFTER_MS = DAY_MS
-- One script sweeps no more names: as many as a large fleet has calls of one tenant under way. The next sweeps on.
local SWEPT_AT_ONCE = 1000

-- All time is Redis's.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local today = math.floor(now / DAY_MS)

local function day_key(day) return KEYS[3] .. string.format('%d', day) end

-- counts: of each count of the day, by how much it grows.
local function count(day, counts)
  for name, by in pairs(counts) do
    if by ~= 0 then redis.call('HINCRBY', day_key(day), name, by) end
  end
end

-- An attempt holds back from its day's budget, in state 'reserved', or has stopped to, in state 'lapsed'.
local function count_open(one, state, sign)
  count(one.day, {
    [state .. '_calls'] = sign, [state .. '_tokens'] = sign * one.tokens, [state .. '_usd_micros'] = sign * one.usd_micros,
  })
end

local function attempts_of(name)
  local packed = redis.call('HGET', KEYS[1], name)
  return packed and cjson.decode(packed) or {}
end

local function keep(name, attempts)
  if #attempts == 0 then
    redis.call('HDEL', KEYS[1], name)
    redis.call('ZREM', KEYS[2], name)
    return
  end
  local soonest = math.huge
  for _, one in ipairs(attempts) do soonest = math.min(soonest, one.until_ms) end
  redis.call('HSET', KEYS[1], name, cjson.encode(attempts))
  redis.call('ZADD', KEYS[2], soonest, name)
end

local function lapse(one)
  count_open(one, 'reserved', -1)
  count_open(one, 'lapsed', 1)
  one.lapsed, one.until_ms = true, now + FORGOTTEN_AFTER_MS
end

-- Take an attempt out of its list. Returns it, or nil if it is not open.
local function take(attempts, number)
  for index, one in ipairs(attempts) do
    if one.attempt == number then
      table.remove(attempts, index)
      count_open(one, one.lapsed and 'lapsed' or 'reserved', -1)
      return one
    end
  end
end

-- Let lapse whose time is over, and forget what lapsed long ago.
local function sweep()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, SWEPT_AT_ONCE)) do
    local left = {}
    for _, one in ipairs(attempts_of(name)) do
      local is_over = one.until_ms <= now
      if is_over and not one.lapsed then lapse(one) end
      if not is_over or one.until_ms > now then left[#left + 1] = one end
    end
    keep(name, left)
  end
end
