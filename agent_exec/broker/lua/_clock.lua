-- Redis's time. Read once a call: what happens in one script happens in one moment.
local CLOCK_EXPIRES_S = 86400

-- Whole numbers of up to 2^53 as text; Lua's own conversion keeps 14 digits.
local function text(number) return string.format('%.0f', number) end

local function now_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The moment of a message: never one that was given before nor an earlier one, so that order within a queue is exact,
-- whatever the clock does.
local function tick_us(now)
  local last = tonumber(call('SET', CLOCK, text(now), 'EX', CLOCK_EXPIRES_S, 'GET') or 0)
  if last < now then return now end
  call('SET', CLOCK, text(last + 1), 'EX', CLOCK_EXPIRES_S)
  return last + 1
end
