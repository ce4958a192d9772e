#!lua
-- Nothing at all, as a script that may write: a server that is full, read-only or without a disk refuses it unrun.
-- KEYS: none.
-- Returns 1.
return 1
