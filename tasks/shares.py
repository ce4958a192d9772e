"""What tenants are entitled to, passed on: their weight and cap to the fair queues, their plan to those who accept work,
their budget to those who spend.

Owns when: when a worker first meets a tenant, when what Agent Management says of it has changed, and now and then. Does
not know how a weight is kept.
"""

from __future__ import annotations

import asyncio
import time

from agent_exec.broker import fair_queue
from agent_exec.contract.agent import Tenant
from agent_exec.ledger import ledger
from agent_exec.spending import reservation
from agent_exec.store import Store

#: Passed on again after this long, for a store that has lost it.
AGAIN_AFTER_S = 600.0
#: Bounds the memory of what was passed on; passing it on again does no harm.
MAX_REMEMBERED = 10_000


class Shares:
    """The shares that this process has passed on."""

    def __init__(self, store: Store, *, keep_s: int) -> None:
        """Take the store, and how long a tenant's plan is remembered there."""
        self._store = store
        self._keep_s = keep_s
        self._passed_on: dict[str, tuple[Tenant, float]] = {}

    async def note(self, tenant: Tenant) -> None:
        """Pass on a tenant's share, if it is new here."""
        known, until = self._passed_on.get(tenant.tenant_id, (None, 0.0))
        if known == tenant and time.monotonic() < until:
            return
        cap = tenant.max_in_flight or None  # 0 is Agent Management's word for none
        await asyncio.gather(  # one round trip
            self._store.insist(fair_queue.set_share(tenant.tenant_id, weight=tenant.weight, cap=cap)),
            self._store.insist(ledger.note_tenant(tenant, keep_s=self._keep_s)),
            self._store.insist(reservation.note_limit(tenant.tenant_id, tenant.budget.usd_per_day)),
        )
        if len(self._passed_on) >= MAX_REMEMBERED:
            self._passed_on.clear()
        self._passed_on[tenant.tenant_id] = tenant, time.monotonic() + AGAIN_AFTER_S
