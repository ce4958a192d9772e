-- Add items to a batch, behind those that it has.
-- KEYS[1] batch HASH; KEYS[2] items LIST
-- ARGV 1 how many items it has before these, 2 forgotten after ms unless sealed, then an item each
-- Returns how many it has now; fewer than expected where it was forgotten meanwhile. Said again, nothing is added
local has = redis.call('LLEN', KEYS[2])
if redis.call('EXISTS', KEYS[1]) == 0 or has ~= tonumber(ARGV[1]) then return has end
for place = 3, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[place]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return has + #ARGV - 2
