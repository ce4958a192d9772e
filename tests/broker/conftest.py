"""What the broker's tests share: running a call, and settling what was popped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import Delivery, Unfinished
from agent_exec.script import Call
from agent_exec.store import BlockingStore

Run = Callable[[Call[Any]], Any]


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
