"""What a worker of the asyncio pool tells Flower, and in how many messages."""

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
import redis

from agent_exec.embedded import EmbeddedServer
from tasks.event_batches import AT_ONCE
from tests.tasks import pool_app
from tests.tasks.pool_worker import PoolWorker, diary_name, eventually, pool_worker, sending_app

#: Behind a task's end by the pause between two batches, and by what a busy machine adds.
SEEN_WITHIN_S = 5.0


class Listener:
    """Listens to every event as Flower does; `messages` are the batches, in order."""

    def __init__(self, client: redis.Redis) -> None:
        self.messages: list[list[dict[str, Any]]] = []
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.psubscribe("*celeryev*")
        self._pubsub.get_message(timeout=5)

    def close(self) -> None:
        self._pubsub.close()

    def events(self, worker: PoolWorker) -> list[dict[str, Any]]:
        """Return all that `worker` has told so far."""
        while (message := self._pubsub.get_message(timeout=0.01)) is not None:
            body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
            self.messages.append(body if isinstance(body, list) else [body])
        return [event for batch in self.messages for event in batch if event["hostname"] == worker.name]

    def told_of(self, worker: PoolWorker, task_id: str) -> list[str]:
        return [event["type"] for event in self.events(worker) if event.get("uuid") == task_id]


def connections(url: str) -> set[int]:
    """Return the server's names of all connections but the one that asks."""
    with redis.Redis.from_url(url, single_connection_client=True) as client:
        return {int(one["id"]) for one in client.client_list()} - {client.client_id()}


@pytest.fixture(scope="module")
def url(redis_server: EmbeddedServer) -> Iterator[str]:
    with sending_app(redis_server.url):
        yield redis_server.url


@pytest.fixture
def listener(url: str) -> Iterator[Listener]:
    client = redis.Redis.from_url(url)
    listener = Listener(client)
    yield listener
    listener.close()
    client.close()


@pytest.fixture
def start(url: str, tmp_path: Path) -> Callable[..., Any]:
    return partial(pool_worker, url, tmp_path, "-E")


def test_a_task_tells_of_its_life_and_a_worker_of_its_own(start: Callable[..., Any], listener: Listener) -> None:
    with start("-c", "8", "--heartbeat-interval", "1") as worker:
        ends = {
            worker.send(pool_app.adds, 1, 2).id: ["task-received", "task-started", "task-succeeded"],
            worker.send(pool_app.fails).id: ["task-received", "task-started", "task-failed"],
        }
        retried = worker.send(pool_app.retried).id
        diary = diary_name()
        revoked = worker.send(pool_app.until_told, diary)
        eventually(lambda: worker.diary(diary))
        revoked.revoke(terminate=True)
        ends[revoked.id] = ["task-received", "task-started", "task-revoked"]
        for task_id, life in ends.items():
            eventually(lambda task_id=task_id, life=life: listener.told_of(worker, task_id) == life)
        tries = ["task-received", "task-started"] * 3 + ["task-retried"] * 2 + ["task-succeeded"]
        # A try is sent before the one that asked for it has ended, and may be told of first.
        eventually(lambda: sorted(listener.told_of(worker, retried)) == sorted(tries))
        (succeeded,) = [event for event in listener.events(worker) if event["type"] == "task-succeeded"][:1]
        assert succeeded["runtime"] >= 0
        eventually(lambda: "worker-heartbeat" in [event["type"] for event in listener.events(worker)])
        worker.signal(SIGTERM)
        assert worker.exit_code() == 0
        assert {"worker-online", "worker-offline"} < {event["type"] for event in listener.events(worker)}


def test_the_events_of_many_tasks_travel_in_few_messages_and_soon(
    start: Callable[..., Any], listener: Listener
) -> None:
    with start("-c", "50") as worker:
        results = [worker.send(pool_app.noop) for _ in range(100)]
        results[-1].get(timeout=15)
        eventually(
            lambda: sum(event["type"] == "task-succeeded" for event in listener.events(worker)) == 100,
            within_s=SEEN_WITHIN_S,
        )
        batches = [batch for batch in listener.messages if batch[0]["type"].startswith("task-")]
        assert sum(map(len, batches)) == 300
        assert len(batches) < 100, "a message for each would be 300"
        assert max(map(len, batches)) <= AT_ONCE


def test_what_was_not_told_when_the_broker_went_away_is_told_when_it_is_back(
    url: str, start: Callable[..., Any], listener: Listener
) -> None:
    diary = diary_name()
    others = connections(url)
    with start("-c", "2") as worker:
        workers = connections(url) - others - {worker.redis.client_id()}
        result = worker.send(pool_app.sync_sleep, 0.5, diary)  # which needs no connection meanwhile
        eventually(lambda: worker.diary(diary))
        for connection in workers:
            worker.redis.client_kill_filter(_id=connection)
        # Told more than once, for the stock transport has brought the message again.
        life = {"task-received", "task-started", "task-succeeded"}
        eventually(lambda: set(listener.told_of(worker, result.id)) == life)


def test_the_last_events_of_a_stopping_worker_are_told(start: Callable[..., Any], listener: Listener) -> None:
    first, last = diary_name(), diary_name()
    with start("-c", "2") as worker:
        results = [worker.send(pool_app.until_told, diary) for diary in (first, last)]
        eventually(lambda: worker.diary(first) and worker.diary(last))
        worker.signal(SIGTERM)
        eventually(lambda: "stopping: 2 tasks waited for" in worker.log)
        worker.tell(first)
        eventually(lambda: listener.told_of(worker, results[0].id)[-1:] == ["task-succeeded"])
        worker.tell(last)
        assert worker.exit_code() == 0
        assert listener.told_of(worker, results[1].id)[-1:] == ["task-succeeded"]


def test_a_worker_without_an_event_loop_tells_at_once(start: Callable[..., Any], listener: Listener) -> None:
    with start("-P", "solo") as worker:
        result = worker.send(pool_app.adds, 1, 2)
        life = ["task-received", "task-started", "task-succeeded"]
        eventually(lambda: listener.told_of(worker, result.id) == life)
