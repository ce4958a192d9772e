-- Send a step a word from outside: whether a tool call is approved, or that a child has ended.
-- KEYS[1] execution HASH; KEYS[2] pending ZSET
-- ARGV 1 tenant, 2 execution, 3 name of the word, 4 the word, 5 1 to keep a word that no step awaits yet, else 0
-- Returns {gone} | {completed} | {failed} | {nobody} | {sent, the word that stands} |
--         {sent, the word that stands, hint of the step that awaited it, as in _hint.lua}
-- include: _state.lua
-- include: _hint.lua
-- include: _word.lua
local tenant, execution = ARGV[1], ARGV[2]
local verdict, word, step, fields =
  send_word(KEYS[1], KEYS[2], tenant, execution, ARGV[3], ARGV[4], ARGV[5] == '1', clock_ms())
if not step then return {verdict, word} end
local agent, priority = unpack(redis.call('HMGET', KEYS[1], 'agent', 'priority'))
return {verdict, word, hint(tenant, execution, agent, priority, step, fields)}
