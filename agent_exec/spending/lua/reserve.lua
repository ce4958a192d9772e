-- Reserve what a call may cost, if the day's budget leaves it. Earlier attempts of the same name hold nothing back any more.
-- KEYS 1–3 as in _spending.lua; KEYS[4] the limit that was last noted STRING
-- ARGV 1 how many days a day is kept, 2 name, 3 attempt, 4 tokens, 5 micro-dollars or '' where the price is unknown,
--      6 the day's limit in micro-dollars or '' for the one that was noted, 7 for how many ms
-- Returns {reserved} | {over, spent, reserved, limit, ms until the next day}, in micro-dollars
-- include: _spending.lua
-- No reservation lasts longer than a day, nor is it known of for longer than one more.
local OPEN_EXPIRES_S = 259200
sweep()
local name, number = ARGV[2], tonumber(ARGV[3])
local wanted = tonumber(ARGV[5]) or 0
local limit = tonumber(ARGV[6]) or tonumber(redis.call('GET', KEYS[4]) or '')
local attempts = attempts_of(name)
for _, one in ipairs(attempts) do
  -- The reply to this very call was lost.
  if one.attempt == number and not one.lapsed then return {'reserved'} end
end
take(attempts, number)
for _, one in ipairs(attempts) do
  if one.attempt < number and not one.lapsed then lapse(one) end
end

local spent, reserved = unpack(redis.call('HMGET', day_key(today), 'used_usd_micros', 'reserved_usd_micros'))
spent, reserved = tonumber(spent or 0), tonumber(reserved or 0)
redis.call('HSET', day_key(today), 'limit_usd_micros', limit and string.format('%.0f', limit) or '')
redis.call('EXPIRE', day_key(today), (today + 1 + ARGV[1]) * DAY_MS / 1000 - time[1])
if limit and wanted > 0 and spent + reserved + wanted > limit then
  keep(name, attempts)
  return {'over', spent, reserved, limit, (today + 1) * DAY_MS - now}
end
-- Money as text: cjson writes 14 digits of a number.
local micros = string.format('%.0f', wanted)
local one = {attempt = number, day = today, tokens = tonumber(ARGV[4]), usd_micros = micros, until_ms = now + ARGV[7]}
attempts[#attempts + 1] = one
count_open(one, 'reserved', 1)
keep(name, attempts)
redis.call('EXPIRE', KEYS[1], OPEN_EXPIRES_S)
redis.call('EXPIRE', KEYS[2], OPEN_EXPIRES_S)
return {'reserved'}
