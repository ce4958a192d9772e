-- Put what a call came to in the place of what was reserved for it.
-- KEYS 1–3 as in _spending.lua
-- ARGV 1 name, 2 attempt, then counts of the day and by how much each grows
-- Returns settled | gone: it was settled before, or was never reserved, or lapsed too long ago
-- include: _spending.lua
sweep()
local attempts = attempts_of(ARGV[1])
local one = take(attempts, tonumber(ARGV[2]))
if not one then return 'gone' end
local counts = {}
for index = 3, #ARGV, 2 do counts[ARGV[index]] = tonumber(ARGV[index + 1]) end
count(one.day, counts)
keep(ARGV[1], attempts)
return 'settled'
