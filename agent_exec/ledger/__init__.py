"""The record in Redis that decides: what is accepted, who holds a step, what has happened, what comes next.

`ledger.py` has all calls under one name, `record.py` what they read, `life.py` the rules as two tables, `lua/` the scripts,
which alone judge.
"""
