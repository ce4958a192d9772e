"""What a tenant spends a day, and what its budget leaves: reserved before a call, settled after it.

`reservation.py` has the calls of those who spend, `usage.py` of those who ask what was spent; `lua/` the scripts.
"""
