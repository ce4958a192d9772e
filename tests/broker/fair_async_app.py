"""The same application with its task as a coroutine, for the asyncio pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery
from redis import asyncio as aioredis

from tasks.task import Task
from tests.broker import fair_app

app = Celery("fair_async_app", task_cls=Task, set_as_current=False)
app.conf.update(
    fair_app.SETTINGS,
    worker_pool="tasks.pool:TaskPool",
    worker_lifespan="tests.broker.fair_async_app:diary",
    worker_cancel_long_running_tasks_on_connection_loss=False,
)


@asynccontextmanager
async def diary(app: Celery) -> AsyncIterator[aioredis.Redis]:
    """The diary, open while the worker runs."""
    async with aioredis.Redis.from_url(app.conf.result_backend) as pages:
        yield pages


@app.task(name="note", bind=True, shared=False)
async def note(self: Task, name: str, for_s: float = 0.0) -> None:
    """Write down when it began and ended, and how many of its group (`group/name`) ran at once."""
    group = name.partition("/")[0]
    pages: aioredis.Redis = self.resources
    await pages.rpush("begun", f"{name} {time.time()}")
    await pages.rpush(f"at once:{group}", await pages.hincrby("running", group, 1))
    await asyncio.sleep(for_s)
    await pages.hincrby("running", group, -1)
    await pages.rpush("ended", name)
