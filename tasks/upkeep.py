"""The due-time set, kept moving: retries whose time has come, expired leases, lost hints.

Owns when it is looked at. Every worker does this; the script gives each step to one of them. Does not know any step.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog

from agent_exec.errors import StorageError
from agent_exec.ledger import ledger
from agent_exec.store import Store

log = structlog.get_logger(__name__)

#: What becomes due while nobody sleeps towards it (a cancel, another worker's retry) is found this much later at most.
LOOK_EVERY_S = 1.0
#: A pause between two full batches, in which hints that workers take meanwhile leave the set.
BETWEEN_BATCHES_S = 0.01


async def keep_up(store: Store) -> NoReturn:
    """Send the hints that are due, for ever."""
    while True:
        try:
            due = await store.run(ledger.due())
            await store.run_many([hint.push() for hint in due.hints])
        except StorageError as error:
            log.warning("due work not looked at", reason=str(error))
            await asyncio.sleep(LOOK_EVERY_S)
        else:
            next_in_s = LOOK_EVERY_S if due.next_in_ms is None else due.next_in_ms / 1000
            await asyncio.sleep(min(LOOK_EVERY_S, max(BETWEEN_BATCHES_S, next_in_s)))
