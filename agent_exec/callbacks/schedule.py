"""When a callback is sent again. Pure.

Owns the schedule. Does not know what became of a try.

Source: Standard Webhooks, "Deliverability and reliability".
"""

from __future__ import annotations

import random

#: What is waited after each try that failed, in seconds: three days in all. Another failure, and it is a dead letter.
PAUSES_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
#: Receivers that went down together are not met again together.
JITTER = 0.1
#: A receiver that asks for a longer pause gets this one.
MAX_RETRY_AFTER_S = 86_400.0


def pause_s(failed: int, *, retry_after_s: float | None = None) -> float | None:
    """Return how long to wait after so many tries that `failed`, from 1; None when it is enough.

    The receiver's `retry_after_s` wins when longer.
    """
    if failed > len(PAUSES_S):
        return None
    pause_s = PAUSES_S[failed - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    return max(pause_s, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))
