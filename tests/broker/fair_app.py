"""A small Celery app for the workers of the broker's tests. Addresses come by `celery -b` and `--result-backend`, the latter
for a diary, in which tasks write down what they do: it survives a broker that a test kills."""

from __future__ import annotations

import time
from functools import cache

import redis
from celery import Celery, Task
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_exec.address import Undisclosed
from agent_exec.broker.transport import register
from tests.sentinels import MASTER_NAME, SENTINEL_PASSWORD

register()

#: Short, so that a killed worker's messages come back while a test waits; long enough for a loaded machine to renew.
LEASE_S = 2.0

SETTINGS = {
    "broker_channel_error_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {
        "fair_lease_s": LEASE_S,
        "master_name": MASTER_NAME,
        # One that is away is passed over at once: redis-py would try it for seconds.
        "sentinel_kwargs": Undisclosed({"password": SENTINEL_PASSWORD, "retry": Retry(NoBackoff(), 0)}),
    },
    "task_acks_late": True,
    "task_ignore_result": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
}

app = Celery("fair_app", set_as_current=False)
app.conf.update(SETTINGS)


@cache
def pages() -> redis.Redis:
    """The diary."""
    return redis.Redis.from_url(app.conf.result_backend)


@app.task(name="note", bind=True, shared=False)
def note(self: Task, name: str, for_s: float = 0.0) -> None:
    """Write down when it began and ended, and how many of its group (`group/name`) ran at once."""
    group = name.partition("/")[0]
    pages().rpush("begun", f"{name} {time.time()}")
    pages().rpush(f"at once:{group}", pages().hincrby("running", group, 1))
    time.sleep(for_s)
    pages().hincrby("running", group, -1)
    pages().rpush("ended", name)
