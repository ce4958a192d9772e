"""What the broker's tests share: running a call, settling what was popped, starting workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import Delivery, Unfinished
from agent_exec.embedded import EmbeddedServer
from agent_exec.script import Call
from agent_exec.store import BlockingStore
from tests.broker.workers import Bench, Start, Worker, diary_of

Run = Callable[[Call[Any]], Any]

#: What Celery calls critical though it is its way to wait: it begins its consumer anew the sixth time within a second
#: (a primary that refuses writes until the replica takes over fails each attempt at once), and rests for one.
THROTTLE = "Frequent restarts detected"


@pytest.fixture
def run(store: BlockingStore) -> Run:
    """Run one call."""
    return store.run


@pytest.fixture
def push(run: Run) -> Callable[..., list[str]]:
    """Push messages to a queue; their text is their tag."""
    counts: dict[str, int] = {}

    def push(queue: str, count: int = 1, *, priority: int = 0, **options: Any) -> list[str]:
        tags = []
        for _ in range(count):
            counts[queue] = counts.get(queue, 0) + 1
            tag = f"{queue}/{counts[queue]}"
            assert run(fair_queue.push(queue, tag=tag, priority=priority, message=tag, **options))
            tags.append(tag)
        return tags

    return push


@pytest.fixture
def pop(run: Run) -> Callable[..., Delivery | None]:
    """Pop one delivery, as often as it takes."""

    def pop(family: str = "agent_execution", **options: Any) -> Delivery | None:
        while (popped := run(fair_queue.pop(family, **options))) == Unfinished():
            pass
        return popped if isinstance(popped, Delivery) else None

    return pop


@pytest.fixture
def serve(pop: Callable[..., Delivery | None], run: Run) -> Callable[..., list[str]]:
    """Pop and acknowledge up to `count` messages; returns their texts."""

    def serve(count: int, family: str = "agent_execution", **options: Any) -> list[str]:
        texts = []
        for _ in range(count):
            popped = pop(family, **options)
            if popped is None:
                break
            texts.append(popped.message.decode())
            assert run(fair_queue.ack([popped.delivery])) == 1
        return texts

    return serve


@pytest.fixture(scope="module")
def start(root: Path, redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start workers; they are stopped in the end, and must then have lived."""
    workers: list[Worker] = []
    directory = tmp_path_factory.mktemp("workers")

    def start(pool: str = "threads", slots: int = 4, url: str = redis_server.url) -> Worker:
        log = directory / f"w{len(workers)}.log"
        worker = Worker(root, url, log, diary_url=diary_of(redis_server.url), pool=pool, slots=slots)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.begin_stop()
    for worker in workers:
        worker.stop()
    for worker in workers:
        log = worker.log.read_text()
        alarms = [line for line in log.splitlines() if "CRITICAL" in line and THROTTLE not in line]
        assert not alarms, log


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    bench = Bench(redis_url, diary_of(redis_url))
    yield bench
    bench.close()
