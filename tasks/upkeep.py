"""The due-time set, kept moving: retries whose time has come, expired leases, lost hints, executions that have to end.

Owns when it is looked at. Every worker does this; the script gives each step to one of them. Does not know any step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from agent_exec.errors import StorageError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import StepRef
from agent_exec.store import Store

log = structlog.get_logger(__name__)

#: What becomes due while nobody sleeps towards it (a cancel, another worker's retry) is found this much later at most.
LOOK_EVERY_S = 1.0
#: A pause between two full batches, in which hints that workers take meanwhile leave the set.
BETWEEN_BATCHES_S = 0.01


async def keep_up(store: Store, *, end_at: Callable[[StepRef], Awaitable[None]]) -> NoReturn:
    """Send the hints that are due, and end what has to end, for ever."""
    while True:
        try:
            due = await store.run(ledger.due())
            await store.run_many([hint.push() for hint in due.hints])
            for ref, broken in zip(
                due.ends, await asyncio.gather(*map(end_at, due.ends), return_exceptions=True), strict=True
            ):
                if isinstance(broken, Exception):  # the others go on, and this one is looked at again
                    log.error("execution not ended", execution_id=ref.execution_id, step=ref.step, exc_info=broken)
        except StorageError:  # the store tells of it
            await asyncio.sleep(LOOK_EVERY_S)
        else:
            next_in_s = LOOK_EVERY_S if due.next_in_ms is None else due.next_in_ms / 1000
            await asyncio.sleep(min(LOOK_EVERY_S, max(BETWEEN_BATCHES_S, next_in_s)))
