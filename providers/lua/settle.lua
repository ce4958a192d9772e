-- What a call came to, after each attempt: what it used, a pause if it was refused, a breaker if it failed.
-- KEYS 1–8 as in _lane.lua
-- ARGV 1 tenant, 2 who asked, 3 its ticket, 4 when it was admitted in ms, 5 tokens it was admitted with, 6 tokens used,
--      7 answered | refused | rate_limited | broken | abandoned, 8 the pause that was asked for in ms ('' for none),
--      9–14 told limits as `learn` in _lane.lua takes them
-- Returns {} or, for rate_limited, {come back in ms, 0 | 1 | 2 as `put_off` in _lane.lua says}
-- include: _lane.lua
-- include: _breaker.lua
local tenant, member, ticket, admitted_at = ARGV[1], ARGV[1] .. ' ' .. ARGV[2], ARGV[3], tonumber(ARGV[4])
local expected, used, outcome, pause_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local now = now_ms()

local function give_back_tokens(lane, tokens)
  if lane.tokens_limit then lane.tokens_level = math.min(lane.tokens_limit, lane.tokens_level + tokens) end
end

local reply = {}
if outcome == 'rate_limited' then
  local lane, told = read_lane(now), {}
  for index = 9, 14 do told[#told + 1] = tonumber(ARGV[index]) end
  give_back_tokens(lane, expected - used)
  learn(lane, told, now)
  -- What was told and is used up explains the refusal, and bounds the lane from here on.
  local explained = told[1] > 0 and told[2] < 1 or told[4] > 0 and told[5] < expected
  if not explained and admitted_at > (lane.cut_at or 0) then cut_pace(lane, now) end
  pause(lane, pause_ms or PAUSE_MS, now)
  drop_lapsed(lane, now)
  local start, ahead, placed = standing(lane, tenant, member)
  local wait = wait_ms(lane, expected, ahead, now)
  reply = {put_off(lane, tenant, member, expected, wait, start, ahead, placed, now)}
  write_lane(lane)
elseif expected ~= used then
  local lane = read_lane(now)
  if lane.tokens_limit then
    give_back_tokens(lane, expected - used)
    write_lane(lane)
  end
end

local broken = judge_probe(KEYS[5], ticket, outcome, now)
local own_broken = judge_probe(KEYS[6], ticket, outcome, now)
if not broken and not own_broken then count_outcome(tenant, outcome, now) end
return reply
