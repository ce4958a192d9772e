"""How many requests each tenant may send to this process.

Owns the counting and its bound. It guards this process's own time, so it is this process's alone: a fleet of n shims lets
in n times as many, no request waits for Redis to be counted, and nothing leaks when a process dies. What tenants cost one
another further on is bounded there: queues, shares, budgets. Does not know what a request asks for.

Source: ITU-T I.371, the generic cell rate algorithm.
"""

from __future__ import annotations

from agent_exec.errors import TooManyRequests

PERIOD_S = 60.0
#: What adding up a minute's intervals may be off by.
ROUNDING_S = 1e-6
#: Above so many tenants, those whose allowance is whole again are forgotten.
MANY_TENANTS = 10_000


class Rates:
    """When each tenant's next request is due, if it sent them evenly."""

    def __init__(self, per_minute: int) -> None:
        """Let each tenant send so many a minute, in whatever burst."""
        self._per_minute = per_minute
        self._due_s: dict[str, float] = {}
        self._sweep_at = MANY_TENANTS

    def take(self, tenant_id: str, *, now_s: float) -> None:
        """Count one request.

        Raises:
            TooManyRequests: it is one too many, and was not counted.
        """
        interval_s = PERIOD_S / self._per_minute
        due_s = max(self._due_s.get(tenant_id, now_s), now_s) + interval_s
        ahead_s = due_s - now_s - PERIOD_S
        if ahead_s > ROUNDING_S:
            raise TooManyRequests(
                f"You may send {self._per_minute} requests a minute here. Operators: AGENT_EXEC_API_REQUESTS_PER_MINUTE.",
                retry_after_s=ahead_s,
            )
        self._due_s[tenant_id] = due_s
        if len(self._due_s) > self._sweep_at:
            self._due_s = {tenant: due for tenant, due in self._due_s.items() if due > now_s}
            self._sweep_at = MANY_TENANTS + 2 * len(self._due_s)
