-- The keys of the fair queue. KEYS[1] is keys.fair_queue(); what stands before that name is the broker's global prefix.
-- A node is a family, `family:tenant`, or `family:tenant:agent`; a queue is the node that holds messages.
-- keys.py says what each key holds; tests/broker/test_keys.py compares the two files.
local ROOT = KEYS[1]
local PREFIX = string.sub(ROOT, 1, -#'ax:queue' - 1)
local CLOCK, MESSAGE, RECORD, LEASE = ROOT .. ':clock', ROOT .. ':message', ROOT .. ':record', ROOT .. ':lease'
local WAITING, IN_FLIGHT, VIRTUAL = ROOT .. ':waiting', ROOT .. ':in_flight', ROOT .. ':virtual'
local SHARE, DEAD = ROOT .. ':share', ROOT .. ':dead'
local LEAF, RING, PARKED, ARRIVING = ROOT .. ':leaf:', ROOT .. ':ring:', ROOT .. ':parked:', ROOT .. ':arriving:'
