-- Shared by the scripts: two breakers. One stops everybody who asks a provider for a model, one a single tenant: what only its own
-- calls come to (too long for the time they get, a request that breaks the server) must not stop the others.
--   KEYS[5] breaker HASH   KEYS[6] own breaker HASH   Absent while closed; else
--     until     when it is half open, in ms          opened   how often it opened without a success in between
--     probe, probe_until                             whose call tries, and until when that is waited for
--   KEYS[7] trouble HASH   From the first failure on, at `since`, for WINDOW_MS: `failures`, `tenants`, `bad` (tenants with as many
--     failures as not), and for each tenant `calls <tenant>` and `failures <tenant>`.

-- Long enough for five failures of a model that is asked now and then, short enough that yesterday's do not count.
local WINDOW_MS = 30000
-- Fewer failures are chance.
local MIN_FAILURES = 5
-- The first time; doubled with each probe that fails, up to the cap: a provider that is back is found within a minute.
local OPEN_MS = 5000
local MAX_OPEN_MS = 60000
-- While a probe is out: its answer begins about now.
local PROBE_SOON_MS = 2000
local BREAKER_KEPT_MS = 3600000

local function open_ms(opened) return math.min(MAX_OPEN_MS, OPEN_MS * 2 ^ (opened - 1)) end

-- 'closed', 'probe' (this call may try), or 'open' with how long that lasts, and over how long to spread who comes back.
local function verdict(key, ticket, now)
  local held = call('HMGET', key, 'until', 'opened', 'probe', 'probe_until')
  if not held[1] then return 'closed' end
  local left = held[1] - now
  if left > 0 then return 'open', left, open_ms(tonumber(held[2])) end
  if held[3] and held[3] ~= ticket and tonumber(held[4]) > now then return 'open', PROBE_SOON_MS, PROBE_SOON_MS end
  return 'probe'
end

local function take_probe(key, ticket, until_ms)
  call('HSET', key, 'probe', ticket, 'probe_until', until_ms)
end

local function open(key, now)
  local opened = call('HINCRBY', key, 'opened', 1)
  call('HSET', key, 'until', now + open_ms(opened))
  call('HDEL', key, 'probe', 'probe_until')
  call('PEXPIRE', key, BREAKER_KEPT_MS)
end

-- What the probe came to, if this call was one. Returns whether there is a breaker at all: nothing else is counted then.
local function judge_probe(key, ticket, outcome, now)
  local held = call('HMGET', key, 'until', 'probe')
  if held[2] == ticket then
    if outcome == 'broken' then open(key, now)
    elseif outcome == 'abandoned' then call('HDEL', key, 'probe', 'probe_until')
    else call('DEL', key) end
  end
  return held[1] ~= false
end

-- Count a call that came to an end, and open what has failed too often.
local function count_outcome(tenant, outcome, now)
  local failed = outcome == 'broken'
  if outcome == 'abandoned' then return end
  local since = call('HGET', KEYS[7], 'since')
  if since and since + WINDOW_MS <= now then
    call('DEL', KEYS[7])
    since = false
  end
  if not since then
    if not failed then return end
    call('HSET', KEYS[7], 'since', now)
    call('PEXPIRE', KEYS[7], WINDOW_MS)
  end
  local calls = call('HINCRBY', KEYS[7], 'calls ' .. tenant, 1)
  local failures = call('HINCRBY', KEYS[7], 'failures ' .. tenant, failed and 1 or 0)
  local before = calls > 1 and 2 * (failures - (failed and 1 or 0)) >= calls - 1
  local bad = 2 * failures >= calls
  local tenants = call('HINCRBY', KEYS[7], 'tenants', calls == 1 and 1 or 0)
  local all_bad = call('HINCRBY', KEYS[7], 'bad', (bad and 1 or 0) - (before and 1 or 0))
  if not failed then return end
  local all = call('HINCRBY', KEYS[7], 'failures', 1)
  if all >= MIN_FAILURES and all_bad >= 2 and 2 * all_bad > tenants then
    open(KEYS[5], now)
    call('DEL', KEYS[7])
  elseif failures >= MIN_FAILURES and bad then
    open(KEYS[6], now)
    call('HSET', KEYS[7], 'calls ' .. tenant, 1, 'failures ' .. tenant, 1)  -- still one that failed; it begins to count anew
  end
end
