-- Read several keys in one moment.
-- KEYS what is read
-- ARGV for each command the number of its words, then they
-- Returns a reply a command
local replies, at = {}, 1
while ARGV[at] do
  local last = at + ARGV[at]
  replies[#replies + 1] = redis.call(unpack(ARGV, at + 1, last))
  at = last + 1
end
return replies
