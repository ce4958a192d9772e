-- May this call be made? Before each attempt: the breakers, then the lane's limits; whoever is put off gets a place.
-- KEYS 1–8 as in _lane.lua
-- ARGV 1 tenant, 2 who asks, 3 tokens it may use, 4 its ticket, 5 how long a probe is waited for in ms
-- Returns {'admitted', wait in the slot in ms, now in ms, whether to tell what the head says (1 or 0)}
--       | {'deferred', come back in ms, 0 | 1 | 2 as `put_off` in _lane.lua says}
--       | {'broken', come back in ms, over how long to spread that in ms}
-- include: _lane.lua
-- include: _breaker.lua
local tenant, member, tokens, ticket = ARGV[1], ARGV[1] .. ' ' .. ARGV[2], tonumber(ARGV[3]), ARGV[4]
-- A worker is to tell a head this often: what others use of the same limits shows nowhere else.
local HEAD_EVERY_MS = 1000
local now = now_ms()

local probes = {}
for index = 5, 6 do
  local said, wait, spread = verdict(KEYS[index], ticket, now)
  if said == 'open' then
    call('ZADD', KEYS[3], 'XX', now + wait + spread + GRACE_MS, member)  -- its place is not its own fault to lose
    return {'broken', wait, spread}
  end
  if said == 'probe' then probes[#probes + 1] = KEYS[index] end
end

local lane = read_lane(now)
local tells = #probes > 0 or now - (lane.head_at or 0) >= HEAD_EVERY_MS
local wait = 0
if #bounds > 0 or (lane.paused_until or 0) > now then
  drop_lapsed(lane, now)
  local start, ahead, placed = standing(lane, tenant, member)
  wait = wait_ms(lane, tokens, ahead, now)
  if wait > SOON_MS then
    local back_in, kept = put_off(lane, tenant, member, tokens, wait, start, ahead, placed, now)
    write_lane(lane)
    return {'deferred', back_in, kept}
  end
  if placed then
    leave(lane, member)
    lane.turn = math.max(lane.turn or 0, start)
    call('ZREMRANGEBYSCORE', KEYS[4], '-inf', lane.turn)
  elseif ahead > 0 then
    call('ZADD', KEYS[4], start + turn_of(lane, tokens), tenant)
    call('PEXPIRE', KEYS[4], MAX_WAIT_MS + GRACE_MS)
  end
  for _, bound in ipairs(bounds) do
    lane[bound.level] = lane[bound.level] - (bound.counts == 'tokens' and tokens or 1)
  end
end
if lane.pace and lane.heard and not lane.pace_peak then
  lane.pace = lane.pace + FIRST_STEP
  if lane.pace > BOUNDLESS then forget(lane, 'pace', 'pace_level') end
end
leave_other_lines(member)
count_admitted(lane, now)
lane.mean = mean_tokens(lane, tokens) * (1 - MEAN_WEIGHT) + tokens * MEAN_WEIGHT
if tells then lane.head_at = now end
for _, key in ipairs(probes) do take_probe(key, ticket, now + ARGV[5]) end
write_lane(lane)
return {'admitted', wait, now, tells and 1 or 0}
