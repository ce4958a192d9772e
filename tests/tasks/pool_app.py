"""The application that the pool's tests run in real workers: `celery -A tests.tasks.pool_app worker`.

Knows nothing of the service. What happens in a task is written to the broker's Redis, through
the client that the application's lifespan opens on the loop, in a list named by the test.
"""

import asyncio
import contextlib
import contextvars
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import redis
from celery import Celery, current_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_postrun, task_prerun, worker_process_init, worker_process_shutdown
from celery.utils.log import get_task_logger
from redis import asyncio as aioredis

from tasks.event_batches import EventBatches

app = Celery("pool_app", task_cls="tasks.task:Task")
app.steps["consumer"].add(EventBatches)
app.conf.update(
    worker_pool="tasks.pool:TaskPool",
    worker_lifespan="tests.tasks.pool_app:lifespan",
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"unacked_restore_interval": 1, "unacked_restore_throttle": 1},
    task_acks_late=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
logger = get_task_logger(__name__)
meetings: dict[str, asyncio.Barrier] = {}
sync_meetings: dict[str, threading.Barrier] = {}
seen_in_signals: contextvars.ContextVar[str] = contextvars.ContextVar("seen_in_signals")


@contextlib.asynccontextmanager
async def lifespan(app: Celery) -> AsyncIterator[Any]:
    pool = aioredis.BlockingConnectionPool.from_url(
        app.conf.broker_url, max_connections=20, decode_responses=True, socket_timeout=None
    )
    async with aioredis.Redis.from_pool(pool) as client:
        await client.rpush(f"lifespan {os.getpid()}", "opened")
        yield client
        await client.rpush(f"lifespan {os.getpid()}", "closed")


@contextlib.asynccontextmanager
async def broken_lifespan(app: Celery) -> AsyncIterator[Any]:
    raise LookupError("no such resource")
    yield


@contextlib.asynccontextmanager
async def endless_lifespan(app: Celery) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


@worker_process_init.connect
def _begin(**_: Any) -> None:
    logger.warning("process %s begins", os.getpid())


@worker_process_shutdown.connect
def _end(**_: Any) -> None:
    logger.warning("process %s ends", os.getpid())


@task_prerun.connect
def _before(task_id: str, **_: Any) -> None:
    seen_in_signals.set(task_id)


@task_postrun.connect
def _after(task_id: str, task: Any, state: str | None, **_: Any) -> None:
    logger.warning("after %s: %s %s %s", task_id, seen_in_signals.get(), task.request.id, state)


@app.task
async def meet(place: str, number: int) -> None:
    """Return once `number` of these tasks wait at `place`, all in one process."""
    await meetings.setdefault(place, asyncio.Barrier(number)).wait()


@app.task
def sync_meet(place: str, number: int) -> None:
    """As `meet`, each in a thread of its own."""
    sync_meetings.setdefault(place, threading.Barrier(number)).wait(10)


@app.task(bind=True)
async def until_told(self: Any, diary: str) -> str:
    """Write `starts`, wait for the word in the list `{diary} go`, and write how it went on."""
    await self.resources.rpush(diary, "starts")
    try:
        await self.resources.blpop(f"{diary} go")
    except asyncio.CancelledError:
        await self.resources.rpush(diary, "cancelled")
        raise
    await self.resources.rpush(diary, "ends")
    return diary


@app.task(bind=True)
async def deaf_sleep(self: Any, seconds: float, diary: str) -> None:
    """Write `starts`, and sleep on through every cancellation."""
    await self.resources.rpush(diary, "starts")
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left_s)


@app.task(bind=True)
async def seen_before(self: Any) -> str:
    """Return what the signal before the task put into the context."""
    await asyncio.sleep(0)
    return seen_in_signals.get()


@app.task
async def noop() -> None:
    pass


@app.task
def sync_noop() -> None:
    pass


@app.task(bind=True)
def sync_add(self: Any, x: int, y: int) -> dict[str, Any]:
    time.sleep(0.05)
    return {"sum": x + y, "id": self.request.id, "thread": threading.current_thread().name}


@app.task(bind=True)
def sync_sleep(self: Any, seconds: float, diary: str) -> None:
    with redis.Redis.from_url(self.app.conf.broker_url) as client:
        client.rpush(diary, "starts")
    time.sleep(seconds)


@app.task(bind=True)
async def who_am_i(self: Any, hops: int) -> list[str | None]:
    """Ids that the task sees of itself: in the body, in a child task, in a thread, at every hop."""
    seen: list[str | None] = []

    async def child() -> None:
        await asyncio.sleep(0.001)
        seen.append(self.request.id)

    for _ in range(hops):
        await asyncio.sleep(0.001)
        seen.append(self.request.id)
        seen.append(current_task.request.id)
        await asyncio.gather(child(), child())
        seen.append(await asyncio.to_thread(lambda: self.request.id))
    return seen


@app.task(bind=True, max_retries=3)
async def retried(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(bind=True, autoretry_for=(ValueError,), max_retries=3, default_retry_delay=0)
async def auto_retried(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise ValueError("not yet")
    return int(self.request.retries)


@app.task
async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("as asked")


@app.task
def sync_fails() -> None:
    raise ValueError("as asked")


@app.task
async def cancels_itself() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@app.task
async def exits() -> None:
    raise SystemExit(3)


@app.task(bind=True, soft_time_limit=0.3)
async def over_soft_limit(self: Any, diary: str, catches: bool) -> str:
    async def child() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await self.resources.rpush(diary, "child cancelled")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
    except SoftTimeLimitExceeded:
        await self.resources.rpush(diary, "told")
        if not catches:
            raise
        async with asyncio.timeout(5):  # counts cancellations: a soft limit must not look like one afterwards
            await asyncio.sleep(0.05)
        return "cleaned up"
    return "never"


@app.task(bind=True, time_limit=0.5)
async def over_hard_limit(self: Any, diary: str) -> None:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        await self.resources.rpush(diary, "cancelled")
        raise


@app.task(bind=True)
async def blocks(self: Any, seconds: float, diary: str) -> None:
    await self.resources.rpush(diary, "starts")
    time.sleep(seconds)  # noqa: ASYNC251  # what the watch has to find


@app.task
async def adds(x: int, y: int) -> int:
    await asyncio.sleep(0)
    return x + y
