-- Ask for the end of an execution, and of all below it: its children, and theirs.
-- KEYS 1–5 as in _ledger.lua; executions below are read and written under the prefix ARGV[3], which keys.py spells
-- ARGV 1 tenant, 2 execution, 3 prefix of an execution's key
-- Returns gone | completed | failed | requested
-- include: _state.lua
-- include: _ledger.lua
-- include: _cancel.lua
return cancel(ARGV[3], tenant, execution, clock_ms())
