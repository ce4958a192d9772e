"""The proof of the promise: a whole service under continuous faults, and what ledgers outside of it say afterwards.

Nothing of the service imports it. `python -m chaos --help` says what it does.
"""
