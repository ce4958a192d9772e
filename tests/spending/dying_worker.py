"""A worker that reserves a whole budget, and is killed in the middle of its calls."""

from __future__ import annotations

import os
import signal
import sys

from agent_exec.spending.reservation import Attempt, reserve
from agent_exec.store import BlockingStore

#: Long enough for the test to find it held.
HOLDS_S = 3.0

if __name__ == "__main__":
    store = BlockingStore(sys.argv[1])
    attempts = [Attempt("acme", f"dead.{number}", 1) for number in range(50)]
    store.run_many([reserve(one, usd=0.02, tokens=10, limit_usd_per_day=1.0, holds_s=HOLDS_S) for one in attempts])
    os.kill(os.getpid(), signal.SIGKILL)
