-- Shared by the scripts: one lane, as it is at this moment. Each takes the same keys:
--   KEYS[1] lane STRING    KEYS[2] line ZSET         KEYS[3] lapses ZSET    KEYS[4] turns ZSET
--   KEYS[5] breaker HASH   KEYS[6] own breaker HASH  KEYS[7] trouble HASH   (_breaker.lua)
--   KEYS[8] places SET     of who asks: the four keys of each lane in whose line it has a place
-- A lane is a map in MessagePack, for numbers go through it exactly and one command reads it. Its fields, each absent until there is
-- something to know; times in ms:
--   at               up to when the levels are counted; in a pause, its end, for nothing grows while nobody may ask
--   paused_until     nobody asks before: a refusal's Retry-After
--   requests_limit, requests_period, requests_level, tokens_limit, tokens_period, tokens_level
--                    what the provider told: so much a period, and what is left of it. Below 0: promised
--   told_at          when it told last
--   pace, pace_level, pace_peak, pace_age, cut_at
--                    our own bound, in requests a minute, and what is left of it. A lane that nobody knows begins with one, and
--                    each call that it lets through raises it. Or it comes of a refusal that nothing told explains: of what was
--                    refused, at `cut_at`, it begins with half, and grows with time. It is forgotten when it bounds nothing
--   slice, admitted, admitted_before
--                    how many were let through in this stretch of time and in the one before it
--   mean             tokens of a call, as they have been lately
--   front, front_tokens
--                    who was put off with nobody ahead, and with how many tokens: they are kept for it, else small calls would
--                    starve a large one
--   turn             virtual time of the line: where the last one that left it had begun
--   head_at, heard   when a worker was last asked to tell what a head says; whether any was told of yet
-- The line holds who was put off, by the virtual time at which its turn begins; `lapses` until when each is waited for; `turns`
-- the virtual time at which each tenant's next turn begins. A turn is as long as the lane needs for its call, in thousandths of
-- what it needs for one as they have been lately: so tenants that wait share the lane's time, whatever the size of their calls and
-- however many of them wait.
local call = redis.call

-- What a provider told, and who waits, is kept over a quiet night.
local LANE_KEPT_MS = 86400000
-- What was told and not told again for so long is no limit any more.
local TOLD_HOLDS_MS = 86400000
-- A refusal without a Retry-After: the pause that most providers ask for.
local PAUSE_MS = 1000
-- One answer must not silence the fleet for a day: after this, one call asks again.
local MAX_PAUSE_MS = 3600000
-- The pace of a lane that nobody knows, and what each call adds to it once a head was heard: it doubles in a second if all of it
-- is used. At a thousand requests a second it bounds nothing.
local FIRST_PACE = 960
local FIRST_STEP = 42
local BOUNDLESS = 60000
-- How far ahead a pace is known; what a call would have to wait beyond that is halved.
local NEAR_MS = 10000
-- The slowest pace after a refusal: asking again every ten seconds finds out soon enough that all is well, and breaks nobody.
local MIN_PACE = 6
-- A pace lets half a second's requests through at once: workers are that late at times, and what is not taken is lost.
local PACE_BURST_MS = 500
-- From the half back to nearly what was refused in this time; then slowly, for it is about the limit and every refusal costs a
-- pause, and faster the longer none comes: twice as much after SEARCH_MS more. A pace is forgotten at this many times what was
-- refused, and what is let through: it bounds nothing.
local RECOVERY_MS = 5000
local NEARLY = 0.95
local SEARCH_MS = 60000
local FORGOTTEN = 4
-- How long the rate of what is let through is counted over.
local SLICE_MS = 2000
-- How much the latest call counts in the mean.
local MEAN_WEIGHT = 1 / 8
-- A wait up to this is cheaper spent in the worker's slot than on a way through the queue, which takes about as long.
local SOON_MS = 200
-- Whoever comes back later than this after its time has lost its place: cancelled, most likely.
local GRACE_MS = 30000
-- The longest wait that is told at once: limits change. Whoever comes back before its turn keeps its place.
local MAX_WAIT_MS = 300000
-- A turn of a call as they have been lately; the shortest turn; and how much of the line may be one tenant's, ten thousand calls:
-- who comes with more waits without a place.
local TURN = 1000
local SHORTEST_TURN = 100
local HORIZON = 10000 * TURN
-- How many lapsed places one call removes.
local MAX_LAPSED = 16

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- When a pace has let `missing` requests more through, in ms, by how it will grow: whoever comes too early asks once more, but
-- who comes too late leaves unused what others wait for.
local function pace_wait_ms(lane, missing)
  if not lane.pace_peak then
    local per_s = lane.pace / 60
    return 1000 * math.log(1 + missing * math.log(2) / per_s) / math.log(2)
  end
  local wait = missing * 60000 / math.max(lane.pace, lane.pace_peak * NEARLY)
  return math.min(wait, (wait + NEAR_MS) / 2)
end

-- What bounds the lane now: how much there can be at once, how much comes in a ms, where the level stands, what it counts.
local bounds
local function find_bounds(lane)
  local found = {}
  for _, kind in ipairs({'requests', 'tokens'}) do
    local limit = lane[kind .. '_limit']
    if limit then
      found[#found + 1] = {most = limit, per_ms = limit / lane[kind .. '_period'], level = kind .. '_level', counts = kind}
    end
  end
  if lane.pace then
    local per_ms = lane.pace / 60000
    found[#found + 1] = {most = math.max(1, per_ms * PACE_BURST_MS), per_ms = per_ms, level = 'pace_level', counts = 'requests',
                          wait_ms = pace_wait_ms}
  end
  bounds = found
end

local function forget(lane, ...)
  for _, name in ipairs({...}) do lane[name] = nil end
end

-- Requests a minute that were let through lately.
local function rate(lane, now)
  local begun = now / SLICE_MS - (lane.slice or 0)
  if begun >= 2 then return 0 end
  if begun >= 1 then return (lane.admitted * (2 - begun)) * 60000 / SLICE_MS end
  return (lane.admitted_before * (1 - begun) + lane.admitted) * 60000 / SLICE_MS
end

local function grow_pace(lane, passed, now)
  lane.pace_age = lane.pace_age + passed
  local searched = math.max(0, lane.pace_age - RECOVERY_MS) / SEARCH_MS
  local share = 0.5 + (NEARLY - 0.5) * math.min(1, lane.pace_age / RECOVERY_MS) + searched * searched
  lane.pace = math.max(MIN_PACE, lane.pace_peak * share)
  if lane.pace >= FORGOTTEN * math.max(lane.pace_peak, rate(lane, now)) then
    forget(lane, 'pace', 'pace_level', 'pace_peak', 'pace_age')
  end
end

-- The lane, with all that has come since it was last looked at.
local function read_lane(now)
  local packed = call('GET', KEYS[1])
  local lane = packed and cmsgpack.unpack(packed) or {}
  if lane.told_at and lane.told_at + TOLD_HOLDS_MS < now then
    forget(lane, 'told_at', 'requests_limit', 'requests_period', 'requests_level', 'tokens_limit', 'tokens_period', 'tokens_level')
  end
  local passed = math.max(0, now - (lane.at or now))
  lane.at = math.max(now, lane.paused_until or 0)
  if lane.pace_peak then
    grow_pace(lane, passed, now)
  elseif not lane.pace and not lane.heard then
    lane.pace, lane.pace_level = FIRST_PACE, FIRST_PACE / 60000 * PACE_BURST_MS
  end
  find_bounds(lane)
  for _, bound in ipairs(bounds) do
    lane[bound.level] = math.min(bound.most, lane[bound.level] + passed * bound.per_ms)
  end
  return lane
end

local function write_lane(lane) call('SET', KEYS[1], cmsgpack.pack(lane), 'PX', LANE_KEPT_MS) end

-- What the head of an answer or a refusal told. It corrects a level downwards only: calls of ours that are under way are in our level and not yet in its.
-- `told` is limit, remaining and period in ms of requests, then of tokens; a limit of 0 was not told.
local function learn(lane, told, now)
  for index, kind in ipairs({'requests', 'tokens'}) do
    local limit, remaining, period = told[3 * index - 2], told[3 * index - 1], told[3 * index]
    if limit > 0 then
      lane[kind .. '_level'] = math.min(lane[kind .. '_level'] or limit, remaining)
      lane[kind .. '_limit'], lane[kind .. '_period'], lane.told_at = limit, period, now
    end
  end
  lane.heard = 1
  if lane.told_at and not lane.pace_peak then forget(lane, 'pace', 'pace_level') end
  find_bounds(lane)
end

local function count_admitted(lane, now)
  local slice = math.floor(now / SLICE_MS)
  if lane.slice ~= slice then
    lane.admitted_before = lane.slice == slice - 1 and lane.admitted or 0
    lane.slice, lane.admitted = slice, 0
  end
  lane.admitted = lane.admitted + 1
end

-- Half of what was let through, at most once for all the refusals that came of it. (After a pause that is not known.)
local function cut_pace(lane, now)
  local lately = rate(lane, now)
  if lane.pace and (lane.pace < lately or now - (lane.paused_until or 0) < SLICE_MS) then lately = lane.pace end
  local peak = math.max(MIN_PACE, lately)
  lane.pace_peak, lane.pace_age, lane.pace, lane.pace_level, lane.cut_at = peak, 0, math.max(MIN_PACE, peak / 2), 0, now
  find_bounds(lane)
end

local function pause(lane, for_ms, now)
  lane.paused_until = math.max(lane.paused_until or 0, now + math.min(for_ms, MAX_PAUSE_MS))
  lane.at = lane.paused_until
end

local function mean_tokens(lane, tokens) return lane.mean or tokens end

-- When a call of so many tokens fits, with those ahead of it, in ms. One that is larger than the whole bound waits for all of it.
-- Where nothing more can come, whoever is here goes: else the lane would stand still for those who do not come back.
local function wait_ms(lane, tokens, ahead, now)
  local mean, longest = mean_tokens(lane, tokens), 0
  local tokens_ahead = ahead > 0 and math.max(mean, lane.front_tokens or 0) + (ahead - 1) * mean or 0
  for _, bound in ipairs(bounds) do
    local need = bound.counts == 'tokens' and math.min(tokens, bound.most) + tokens_ahead or 1 + ahead
    local level = lane[bound.level]
    if need > level and level < bound.most then
      longest = math.max(longest, bound.wait_ms and bound.wait_ms(lane, need - level) or (need - level) / bound.per_ms)
    end
  end
  return math.ceil(longest + math.max(0, (lane.paused_until or 0) - now))
end

-- How long a call keeps the lane, against others.
local function turn_of(lane, tokens)
  local its, others = 0, 0
  for _, bound in ipairs(bounds) do
    local counts_tokens = bound.counts == 'tokens'
    its = math.max(its, (counts_tokens and tokens or 1) / bound.per_ms)
    others = math.max(others, (counts_tokens and mean_tokens(lane, tokens) or 1) / bound.per_ms)
  end
  if others == 0 then return TURN end
  return math.max(SHORTEST_TURN, math.floor(TURN * its / others))
end

local function leave(lane, member)
  call('ZREM', KEYS[2], member)
  call('ZREM', KEYS[3], member)
  if lane.front == member then forget(lane, 'front', 'front_tokens') end
end

local function give_turn_back(turns, member)
  local tenant = string.match(member, '^%S+')
  if call('ZSCORE', turns, tenant) then call('ZINCRBY', turns, -TURN, tenant) end
end

-- Who is let through here waits nowhere else any more: it found another model, and that lane is not to wait for it.
local function leave_other_lines(member)
  local places = call('SMEMBERS', KEYS[8])
  if #places == 0 then return end
  call('DEL', KEYS[8])
  for _, place in ipairs(places) do
    local key, line, lapses, turns = string.match(place, '^(%S+) (%S+) (%S+) (%S+)$')
    if key ~= KEYS[1] and call('ZREM', line, member) == 1 then
      call('ZREM', lapses, member)
      give_turn_back(turns, member)
      local packed = call('GET', key)
      local lane = packed and cmsgpack.unpack(packed) or {}
      if lane.front == member then
        forget(lane, 'front', 'front_tokens')
        call('SET', key, cmsgpack.pack(lane), 'KEEPTTL')
      end
    end
  end
end

-- Places whose time has passed are given back, and their turns with them.
local function drop_lapsed(lane, now)
  for _, member in ipairs(call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, MAX_LAPSED)) do
    leave(lane, member)
    give_turn_back(KEYS[4], member)
  end
end

-- Where a call stands: the virtual time at which its turn begins, how many are ahead, and whether it has a place already.
local function standing(lane, tenant, member)
  local tag = call('ZSCORE', KEYS[2], member)
  if tag then return tonumber(tag), call('ZRANK', KEYS[2], member), true end
  local turn = lane.turn or 0
  local start = math.max(turn, tonumber(call('ZSCORE', KEYS[4], tenant) or turn))
  return start, call('ZCOUNT', KEYS[2], '-inf', start), false
end

-- Put a call off for so long, at the place that `standing` found. Returns when to come back in ms, and whether that is its time
-- (1), or others are told the same: to be spread, with a place (2) or without (0).
local function put_off(lane, tenant, member, tokens, wait, start, ahead, placed, now)
  if ahead == 0 then lane.front, lane.front_tokens = member, tokens end
  if not placed then
    if start - (lane.turn or 0) > HORIZON then return math.min(MAX_WAIT_MS, wait), 0 end
    call('ZADD', KEYS[2], start, member)
    call('ZADD', KEYS[4], start + turn_of(lane, tokens), tenant)
  end
  local told = math.min(MAX_WAIT_MS, wait)
  call('ZADD', KEYS[3], now + told + GRACE_MS, member)
  call('SADD', KEYS[8], table.concat(KEYS, ' ', 1, 4))
  for _, index in ipairs({2, 3, 4, 8}) do call('PEXPIRE', KEYS[index], MAX_WAIT_MS + GRACE_MS) end
  return told, told == wait and 1 or 2
end
