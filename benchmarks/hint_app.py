"""Two Celery applications with the same tasks: `fair` on our transport, `stock` on kombu's. For `celery -A`.

Owns tasks that do next to nothing, under the names that hints carry, so that what is measured is their way to a worker.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import redis
from celery import Celery, chord

from agent_exec.broker.transport import register
from agent_exec.routing import EXECUTION_FAMILY, task_name

register()

#: What `note` takes; four slots begin up to 800 a second.
WORK_S = 0.005
#: LIST: who has begun, in order, `tenant time`.
BEGUN = "begun"
#: Tasks at once, in both workers.
SLOTS = 4
#: Links of stock's chains and the last of them; the turns of its loop of chords, and their members.
LINK, LAST, TURN, MEMBER = "link", "last", "turn", "member"
#: STRING: how many of the last have run.
OVER = "over"
#: Of a chord; our tool calls of one turn are as many.
MEMBERS = 3


def _application(name: str, **options: Any) -> Celery:
    app = Celery(name, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_ignore_result=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        **options,
    )
    # Not `shared`, which would put them into every application of the process.
    app.task(_nothing, name=task_name("prompt"), shared=False)
    app.task(_note, name=task_name("completion"), bind=True, shared=False)
    app.task(_nothing, name=LINK, shared=False)
    app.task(_nothing, name=MEMBER, ignore_result=False, shared=False)  # a chord counts its members' results
    app.task(_last, name=LAST, bind=True, shared=False)
    app.task(_turn, name=TURN, bind=True, shared=False)
    return app


def _nothing(**_: Any) -> None:
    """Do nothing."""


def _note(self: Any, *, tenant_id: str, **_: Any) -> None:
    """Write down who begins, and when; then work a little."""
    _pages(self.app).rpush(BEGUN, f"{tenant_id} {time.time()}")
    time.sleep(WORK_S)


def _last(self: Any) -> None:
    """Count a chain or a chord that is over."""
    _pages(self.app).incr(OVER)


def _turn(self: Any, *, left: int, queue: str) -> None:
    """Have the members run, and then the next turn."""
    if left == 0:
        _last(self)
        return
    member = self.app.signature(MEMBER, immutable=True, queue=queue)
    following = self.app.signature(TURN, kwargs={"left": left - 1, "queue": queue}, immutable=True, queue=queue)
    chord([member] * MEMBERS, app=self.app)(following)


@cache
def _pages(app: Celery) -> redis.Redis:
    return redis.Redis.from_url(app.conf.broker_url)


fair = _application("fair", task_default_queue=EXECUTION_FAMILY)
stock = _application("stock", broker_transport="kombu.transport.redis:Transport")
