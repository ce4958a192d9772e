"""Schedules, kept: whenever one is due its request becomes an execution.

Owns when it is looked at. Every worker does this; the scripts give each time to one of them. Does not know how an execution
runs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

import structlog

from agent_exec import submission
from agent_exec.errors import Conflict, NotFound, QueueFull, StorageError
from agent_exec.ledger import ledger
from agent_exec.schedules import schedule
from agent_exec.schedules.schedule import Scheduled
from agent_exec.settings import Settings
from agent_exec.store import Store

log = structlog.get_logger(__name__)

#: A cron line counts minutes; a second late is nothing.
LOOK_EVERY_S = 1.0


async def keep_schedules(store: Store, settings: Settings) -> NoReturn:
    """Begin what is due, for ever."""
    while True:
        taken: list[Scheduled] = []
        with suppress(StorageError):  # the store tells of it
            taken = await store.run(schedule.due())
        beginning = [_begin(standing, store, settings) for standing in taken]
        for standing, broken in zip(taken, await asyncio.gather(*beginning, return_exceptions=True), strict=True):
            # The others go on, and this one is looked at again.
            if isinstance(broken, Exception) and not isinstance(broken, StorageError):
                log.error("schedule not begun", schedule_id=standing.ref.schedule_id, exc_info=broken)
        if len(taken) < schedule.DUE_AT_ONCE:
            await asyncio.sleep(LOOK_EVERY_S)


async def _begin(standing: Scheduled, store: Store, settings: Settings) -> None:
    ref = standing.ref
    named = {"schedule_id": ref.schedule_id, "tenant_id": ref.tenant_id}
    if not standing.may_overlap and await _runs(standing, store):
        await store.run(schedule.begun(standing, is_begun=False))
        log.info("schedule left out a time: the execution of the one before has not ended", **named)
        return
    message = submission.message_of(standing.request, tenant_id=ref.tenant_id, execution_id=standing.execution_id)
    storing = submission.store(
        message, open_retention_s=settings.open_retention_s, max_queued=settings.max_queued, callback_door=None
    )
    try:
        accepted = await store.run(storing)
    except QueueFull as error:
        log.warning("schedule waits for room in its tenant's queue", reason=str(error), **named)
        return
    except Conflict as error:  # an execution of somebody's that only chance can have given this id
        log.error("schedule left out a time", reason=str(error), **named)
    else:
        if accepted.begins:
            await store.run(submission.first_hint(message, accepted).push())
    await store.run(schedule.begun(standing))
    log.info("schedule begun", execution_id=standing.execution_id, **named)


async def _runs(standing: Scheduled, store: Store) -> bool:
    if standing.last_execution_id is None:
        return False
    try:
        record = await store.run(ledger.look(standing.ref.tenant_id, standing.last_execution_id))
    except NotFound:
        return False
    return record.finished_at is None
