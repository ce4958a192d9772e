-- Write what was planned, if all that the plan rests on is as it was read; else nothing.
-- KEYS what is read and written
-- ARGV 1 number of reads; for each the SHA-1 of its reply, the number of its words, and they; then for each write the type that its
--      key must have, if it is there ('' for any), the number of its words, and they
-- Returns written | changed | wrong type of <key>
local at = 2
for _ = 1, tonumber(ARGV[1]) do
  local last = at + 1 + ARGV[at + 1]
  if redis.sha1hex(tostring(redis.call(unpack(ARGV, at + 2, last)) or '')) ~= ARGV[at] then return 'changed' end
  at = last + 1
end
-- An error in the middle would leave the half of it: what can go wrong is asked before.
local writes = {}
while ARGV[at] do
  local last = at + 1 + ARGV[at + 1]
  local key = ARGV[at + 3]
  if ARGV[at] ~= '' then
    local found = redis.call('TYPE', key).ok
    if found ~= ARGV[at] and found ~= 'none' then return 'wrong type of ' .. key end
  end
  writes[#writes + 1] = {at + 2, last}
  at = last + 1
end
for _, words in ipairs(writes) do redis.call(unpack(ARGV, words[1], words[2])) end
return 'written'
