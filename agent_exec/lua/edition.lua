-- Read since when what is cached of an agent's configuration is void.
-- KEYS[1] the tenant's voided configurations HASH
-- ARGV 1 agent
-- Returns {mark of the tenant, mark of the agent}, each '' where there is none
local marks = redis.call('HMGET', KEYS[1], '*', ARGV[1])
return {marks[1] or '', marks[2] or ''}
