"""The record in Redis that decides: what is accepted, who holds a step, what has happened, what comes next.

`ledger.py` has the calls, `record.py` what they read, `lua/` the scripts, which alone judge.
"""
