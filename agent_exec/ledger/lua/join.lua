-- Journal one of several steps that another one waits for; the last of them creates that one. Where not all of them were created at
-- once, each of the others creates one more.
-- KEYS 1–5 as in _ledger.lua
-- ARGV 1 tenant, 2 execution, 3 step, 4 fence, 5 result JSON, 6 parent of the next step, 7 look at it again after ms,
--      8 the step that waits, 9 number of events, then name and JSON each
-- Returns waiting (others are still to come) | opened and, behind a blank, the name of the one that was created |
--         joined (the waiting step was created) | gone | over | fenced | done
-- include: _state.lua
-- include: _ledger.lua
-- include: _held.lua
local now, target = clock_ms(), ARGV[8]
local found, refusal = held(now)
if refusal then return refusal end
journal(found.step, ARGV[5])
append_all(9, now)
local joined = redis.call('HINCRBY', KEYS[1], 'joined:' .. target, 1)
local expected, packed = unpack(redis.call('HMGET', KEYS[1], 'expected:' .. target, 'later:' .. target))
local later = packed and cjson.decode(packed) or {}
local created = joined == tonumber(expected) and target or later[joined]
if not created then return 'waiting' end
create_step(created, ARGV[6], math.min(now + ARGV[7], found.ends_at_ms))
if created ~= target then return 'opened ' .. created end
redis.call('HDEL', KEYS[1], 'joined:' .. target, 'expected:' .. target, 'later:' .. target)
return 'joined'
