"""Which failed attempt is tried again, and when. Pure.

Owns the backoff. Whether an error is worth a retry stands on its class (agent_exec.errors). Does not know how one waits.
"""

from __future__ import annotations

import random

from agent_exec.errors import ExecutionError, NeighbourError, ProviderError
from tasks.next_step import Fail, WaitUntil

#: The ceiling of the first pause; it doubles with every attempt.
BASE_S = 0.5
#: No pause of ours is longer; a provider that asks for a longer one gets it.
MAX_S = 30.0


def after_failure(error: ExecutionError, *, retries: int, max_retries: int) -> Fail | WaitUntil:
    """Return what follows a failed attempt that `retries` failed ones came before."""
    if not error.retryable or retries >= max_retries:
        return Fail(error)
    asked_s = error.retry_after_s if isinstance(error, NeighbourError | ProviderError) else None
    return WaitUntil(backoff_s(retries + 1, retry_after_s=asked_s), error)


def backoff_s(attempt: int, *, retry_after_s: float | None = None) -> float:
    """Return how long to wait before `attempt` (from 1), in seconds.

    Full jitter under an exponential ceiling; the pause that the other side asked for wins when longer.

    Raises:
        ValueError: `attempt` is below 1.
    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, not {attempt}")
    ours_s = random.uniform(0, min(MAX_S, BASE_S * 2 ** min(attempt - 1, 16)))
    return max(ours_s, retry_after_s or 0.0)
