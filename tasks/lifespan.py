"""What a worker is beside its steps, from its start to its end: resources, heartbeats, upkeep, and the end in good order.

Owns the background duties, and that a worker which is asked to stop hands back what it does not finish. Does not know
what a step does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import structlog
from celery.signals import worker_shutting_down

from agent_exec import exposure, server
from agent_exec.ending import end
from agent_exec.settings import read_settings
from tasks.attempt import end_at
from tasks.leases import Leases
from tasks.resources import Resources, open_resources
from tasks.schedules import keep_schedules
from tasks.upkeep import keep_up

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[Resources]:
    """Open the resources and do the duties for as long as the worker's loop runs (`worker_lifespan` in celeryconfig.py)."""
    settings = read_settings()
    exposure.warn(settings)
    async with contextlib.AsyncExitStack() as stack:
        resources = await stack.enter_async_context(open_resources(settings))
        store = resources.store
        upkeep, inspection = keep_up(store, end_at=partial(end_at, resources)), server.inspect(store, settings)
        for duty in (
            resources.leases.beat(),
            upkeep,
            resources.links.keep_sending(),
            resources.batches.keep_feeding(),
            keep_schedules(store, settings),
            inspection,
        ):
            await stack.enter_async_context(_background(duty))
        stack.enter_context(_handing_back(resources.leases, after_s=settings.shutdown_grace_s))
        yield resources


@contextlib.asynccontextmanager
async def _background(duty: Any) -> AsyncIterator[None]:
    """Do a duty while open. A worker that cannot do it is no worker: it stops, and its supervisor starts another."""
    task = asyncio.create_task(duty)
    task.add_done_callback(_stop_worker_if_broken)
    try:
        yield
    finally:
        await end([task])


def _stop_worker_if_broken(duty: asyncio.Task[Any]) -> None:
    if not duty.cancelled() and duty.exception() is not None:
        log.critical("a background duty broke; the worker stops", exc_info=duty.exception())
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _handing_back(leases: Leases, *, after_s: float) -> Iterator[None]:
    """While open: a worker that is asked to stop gives its steps so long to finish, and hands back the rest."""
    loop = asyncio.get_running_loop()

    def on_shutting_down(**_: Any) -> None:  # in the main thread
        loop.call_soon_threadsafe(loop.call_later, after_s, leases.hand_back)

    worker_shutting_down.connect(on_shutting_down)
    try:
        yield
    finally:
        worker_shutting_down.disconnect(on_shutting_down)
