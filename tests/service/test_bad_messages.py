"""What must not stop a worker, on every queue that it consumes: each a dead letter whose reason says what was wrong.

The numbers are those of the catalogue of bad inputs: B22 to B30.
"""

from __future__ import annotations

import base64
import json
import pickle
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_exec import ExecutionRequest, keys
from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import DeadLetter
from agent_exec.hint import Hint
from agent_exec.store import BlockingStore
from tests.processes import Process, wait_until
from tests.service.conftest import Service

#: A family's own list, one of the variants that a plain app's `priority_steps` make, a tenant's queue, an agent's.
PLACES = {
    "the family's list": "agent_execution",
    "a priority variant": "agent_execution\x06\x163",
    "the tools' list": "agent_tools",
    "a tenant's queue": "agent_execution:acme",
    "an agent's queue": "agent_tools:acme:desk",
}
#: A hint that the ledger knows nothing of is settled in milliseconds; this many at once, in seconds.
REPLAYS = 1_000


class Trap:
    """What unpickling runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Intruder:
    """Somebody with access to the broker, and a worker that has to live with it."""

    def __init__(self, service: Service, worker: Process, store: BlockingStore) -> None:
        self.service, self.worker, self.store = service, worker, store

    def put(self, queue: str, message: str | bytes) -> None:
        """Lay a message where a worker finds it, past every check of a producer."""
        if ":" in queue:
            tag = str(uuid.uuid4())
            self.store.run(fair_queue.push(queue, tag=tag, priority=0, message=message, max_bytes=10**9))
        else:
            self.store.redis.lpush(queue, message)

    def letter(self, queue: str, mark: str) -> DeadLetter:
        """Return the dead letter of the message that holds `mark`, once it is one."""
        found: list[DeadLetter] = []

        def arrived() -> bool:
            found[:] = [one for one in self.store.run(fair_queue.dead_letters()) if mark in one.message]
            return bool(found)

        wait_until(arrived, what=f"the dead letter of {queue}", within_s=30)
        [letter] = found
        assert letter.queue == queue.partition("\x06")[0]
        return letter

    def idle(self) -> bool:
        """Say whether every message is settled."""
        return not self.store.redis.exists(keys.fair_record(), "agent_execution", "agent_tools")


@pytest.fixture(scope="module")
def intruder(service: Service) -> Iterator[Intruder]:
    """One worker for all of them: it must live, and do honest work afterwards."""
    apart = service.apart(6)
    store = BlockingStore(apart.env["AGENT_EXEC_REDIS_URL"])
    try:
        worker = apart.worker("beset")
        yield Intruder(apart, worker, store)
        with apart.client() as client:
            work = ExecutionRequest(agent_id="desk", query="hello")
            final = client.wait("acme", client.submit(work, tenant_id="acme"), timeout_s=30)
        assert final.status == "completed"
        assert worker.running, worker.output[-4_000:]
        assert "CRITICAL" not in worker.output
    finally:
        apart.stop()
        store.redis.flushdb()
        store.close()


@pytest.fixture(params=PLACES.values(), ids=list(PLACES))
def queue(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def wire(mark: str, *, arguments: Any = None, **changes: Any) -> str:
    """Return a good hint, marked, but for its `changes`; a change's key is a path, `headers__eta`."""
    hint = Hint(tenant_id="acme", agent_id="desk", execution_id=mark, step="prompt", priority=3)
    message: dict[str, Any] = json.loads(hint.message())
    if arguments is not None:
        message["body"] = body(arguments)
    for path, value in changes.items():
        *parents, name = path.split("__")
        at = message
        for parent in parents:
            at = at[parent]
        at[name.replace("_", "-") if name.startswith("content") else name] = value
    return json.dumps(message)


def body(content: Any) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


@pytest.fixture
def mark() -> str:
    """What tells a message from all others."""
    return str(uuid.uuid4())


# -- B22: other encodings


def test_b22_a_pickled_message_is_never_unpickled(intruder: Intruder, queue: str, mark: str, tmp_path: Path) -> None:
    """S20."""
    trap = tmp_path / "sprung"
    pickled = base64.b64encode(pickle.dumps(Trap(trap))).decode()
    intruder.put(queue, wire(mark, content_type="application/x-python-serialize", body=pickled))
    letter = intruder.letter(queue, mark)
    assert letter.reason == "its content type is 'application/x-python-serialize' and not 'application/json'"
    assert not trap.exists()


@pytest.mark.parametrize("content_type", ["application/x-yaml", "application/data", "application/x-msgpack", ""])
def test_b22_only_json_is_taken(intruder: Intruder, queue: str, mark: str, content_type: str) -> None:
    """S20."""
    intruder.put(queue, wire(mark, content_type=content_type))
    assert intruder.letter(queue, mark).reason == f"its content type is '{content_type}' and not 'application/json'"


# -- B23: bodies that are none


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("no base64!", "its body is not JSON in base64"),
        (base64.b64encode(b"{").decode(), "its body is not JSON in base64"),
        (body(None), "its body is not a list of arguments"),
        (body([[], {}]), "its body is not a list of arguments"),
        (None, "its body is null"),
    ],
    ids=["not base64", "not JSON", "null", "wrong length", "none"],
)
def test_b23_a_body_that_is_none(intruder: Intruder, queue: str, mark: str, wrong: Any, reason: str) -> None:
    intruder.put(queue, wire(mark, body=wrong))
    assert intruder.letter(queue, mark).reason.startswith(reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"mark": "%s"', "the message is not JSON"),
        ('["%s"]', "the message is of type list and not an object"),
        ('{"job": "%s", "retry": true}', "its properties are null and not an object"),
        ('{"task": "agent_exec.prompt", "id": "%s", "args": [], "kwargs": {}}', "its properties are null"),
    ],
    ids=["malformed", "an array", "of another system", "of Celery's protocol 1"],
)
def test_b23_what_is_no_message_of_celerys(intruder: Intruder, queue: str, mark: str, text: str, reason: str) -> None:
    intruder.put(queue, text % mark)
    assert intruder.letter(queue, mark).reason.startswith(reason)


# -- B24: tasks


def test_b24_a_task_that_nobody_knows(intruder: Intruder, queue: str, mark: str) -> None:
    intruder.put(queue, wire(mark, headers__task="no.such.task"))
    assert intruder.letter(queue, mark).reason.startswith("the worker rejected it: it knows no such task")


@pytest.mark.parametrize(
    "arguments",
    [[[], {}, {}], [["too", "many"], {}, {}], [[], {"tenant_id": 5}, {}]],
    ids=["missing", "positional", "of another type"],
)
def test_b24_arguments_that_a_step_does_not_take(intruder: Intruder, queue: str, mark: str, arguments: Any) -> None:
    intruder.put(queue, wire(mark, arguments=arguments))
    assert intruder.letter(queue, mark).reason == "arguments that are none of a prompt step's"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([[], {}, {}], "arguments that are none of the intake's"),
        ([[], {"message": {}, "more": 1}, {}], "arguments that are none of the intake's"),
        ([[], {"message": 5}, {}], "invalid_message: "),
    ],
    ids=["missing", "extra", "no message"],
)
def test_b24_arguments_that_the_intake_does_not_take(
    intruder: Intruder, queue: str, mark: str, arguments: Any, reason: str
) -> None:
    intruder.put(queue, wire(mark, headers__task="agent_exec.execute", arguments=arguments))
    assert reason in intruder.letter(queue, mark).reason


# -- B26, B27: hints that are well formed, and not true


@pytest.fixture(scope="module")
def ended(intruder: Intruder) -> str:
    """An execution of acme's that is over."""
    with intruder.service.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query="hello"), tenant_id="acme")
        client.wait("acme", execution_id, timeout_s=30)
    wait_until(intruder.idle, what="its last hint to be settled")
    return execution_id


Untrue = Callable[[str], Hint]


@pytest.mark.parametrize(
    "untrue",
    [
        lambda ended: _hint("acme", str(uuid.uuid4()), "prompt"),
        lambda ended: _hint("globex", ended, "prompt"),
        lambda ended: _hint("acme", ended, "completion.1"),
        lambda ended: _hint("acme", ended, "completion.99"),
        lambda ended: _hint("acme", ended, "tool_call.7.0"),
    ],
    ids=["unknown execution", "another tenant's", "already over", "a turn to come", "a call never asked for"],
)
def test_b26_a_hint_that_is_not_true_changes_nothing(intruder: Intruder, ended: str, untrue: Untrue) -> None:
    """S03; and why hints need no signature (S22, B31): whoever forges one starts nothing."""
    before = _traces(intruder, ended)
    assert intruder.store.run(untrue(ended).push())
    wait_until(intruder.idle, what="the hint to be settled", within_s=30)
    assert _traces(intruder, ended) == before


@pytest.mark.parametrize("place", ["agent_execution:globex", "agent_execution"])
def test_b26_a_tenants_hint_on_a_queue_that_is_not_its_own(intruder: Intruder, place: str, mark: str) -> None:
    intruder.put(place, wire(mark))
    assert intruder.letter(place, mark).reason == "another tenant than its queue's: acme"


def test_b27_a_hint_that_is_replayed_a_thousand_times_changes_nothing(intruder: Intruder, ended: str) -> None:
    before = _traces(intruder, ended)
    calls = [_hint("acme", ended, "completion.1", label=f"replay {number}").push() for number in range(REPLAYS)]
    assert all(intruder.store.run_many(calls))
    wait_until(intruder.idle, what="the hints to be settled", within_s=50)
    assert _traces(intruder, ended) == before


def _hint(tenant_id: str, execution_id: str, step: str, *, label: str = "99") -> Hint:
    return Hint(tenant_id=tenant_id, agent_id="desk", execution_id=execution_id, step=step, priority=3, label=label)


def _traces(intruder: Intruder, execution_id: str) -> tuple[object, ...]:
    """What an execution has left: calls at the provider, its record, its events, and dead letters."""
    return (
        len(intruder.service.calls()),
        intruder.store.redis.hgetall(keys.execution("acme", execution_id)),
        intruder.store.redis.xlen(keys.streaming("acme", execution_id)),
        intruder.store.redis.llen(keys.fair_dead()),
    )


# -- B28: sizes


def test_b28_a_hint_of_more_than_16_kb(intruder: Intruder, queue: str, mark: str) -> None:
    """S21."""
    intruder.put(queue, wire(mark, headers__argsrepr="x" * 16_384))
    assert re.fullmatch(r"has \d+ bytes; at most 16384 are taken", intruder.letter(queue, mark).reason)


def test_b28_fifty_megabytes_are_not_decoded(intruder: Intruder, queue: str, mark: str) -> None:
    intruder.put(queue, mark + "x" * 50_000_000)
    letter = intruder.letter(queue, mark)
    assert letter.reason == f"has {50_000_000 + len(mark)} bytes; at most 1500000 are taken"
    assert letter.size_bytes == 50_000_000 + len(mark)
    assert len(letter.message) == fair_queue.DEAD_LETTER_MAX_BYTES


# -- B30: headers


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headers": {}}, "its header 'task' is missing"),
        ({"headers__id": None}, "its header 'id' is missing"),
        ({"headers__retries": -5}, "its header 'retries' is not a number from 0 on"),
        ({"headers__eta": "9999-01-01T00:00:00"}, "it has an eta or a countdown"),
        ({"headers__expires": "2020-01-01T00:00:00"}, "it expired before its turn came"),
    ],
    ids=["none", "no id", "negative retries", "an eta", "expired"],
)
def test_b30_headers(intruder: Intruder, queue: str, mark: str, changes: dict[str, Any], reason: str) -> None:
    intruder.put(queue, wire(mark, **changes))
    assert intruder.letter(queue, mark).reason.startswith(reason)
