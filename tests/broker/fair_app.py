"""A small Celery app for the workers of the broker's tests. The broker's address comes by `celery -b`."""

from __future__ import annotations

import time
from typing import Any

import redis
from celery import Celery, Task

from agent_exec.broker.transport import register

register()

#: Short, so that a killed worker's messages come back while a test waits; long enough for a loaded machine to renew.
LEASE_S = 2.0

app = Celery("fair_app", set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"fair_lease_s": LEASE_S},
    task_acks_late=True,
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)


def diary(url: str) -> redis.Redis:
    """Where tasks write down what they do: another database than the broker's."""
    return redis.Redis.from_url(url, db=9)


@app.task(name="note", bind=True)
def note(self: Task, name: str, for_s: float = 0.0) -> None:
    """Write down when it began and ended, and what ran at once."""
    pages = _diary()
    pages.rpush("begun", f"{name} {time.time()}")
    pages.hincrby("running", name.split("/")[0], 1)
    pages.rpush("running_at", f"{name.split('/')[0]} {int(pages.hget('running', name.split('/')[0]) or 0)}")
    time.sleep(for_s)
    pages.hincrby("running", name.split("/")[0], -1)
    pages.rpush("ended", f"{name} {time.time()}")


def _diary() -> Any:
    if "pages" not in globals():
        globals()["pages"] = diary(app.conf.broker_write_url)
    return globals()["pages"]
