-- Shared by the scripts that note a time: all of it is Redis's. In ms; and exact, to tell who came first within one.
local function clock_ms()
  local time = redis.call('TIME')
  local exact = time[1] * 1000 + time[2] / 1000
  return math.floor(exact), exact
end
