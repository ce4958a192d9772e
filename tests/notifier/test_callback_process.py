"""Callbacks of `python -m notifier`: killed between a request and its note, stopped, and without Redis meanwhile (F52)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import CallbackRef
from agent_exec.callbacks.destination import Rules
from agent_exec.embedded import EmbeddedServer
from agent_exec.store import BlockingStore, Store
from tests.callbacks.played_end import asked, ended, ended_soon, time_passes
from tests.notifier.played_orchestrator import Orchestrator, until
from tests.notifier.played_receiver import Receiver
from tests.notifier.played_work import eventually
from tests.processes import Process, wait_until

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
RULES = Rules(allow_http=True, allowed_networks=(ip_network("127.0.0.0/8"),))
Start = Callable[..., Process]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().listening() as one:
        yield one


@pytest.fixture
def start(orchestrator: Orchestrator, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a notifier; whatever still runs at the end of the test is stopped."""
    started: list[Process] = []
    env = {
        "AGENT_EXEC_REDIS_URL": redis_url,
        "AGENT_EXEC_ORCHESTRATOR_WS_URL": orchestrator.url,
        "AGENT_EXEC_CALLBACK_SECRET": SECRET,
        "AGENT_EXEC_CALLBACK_ALLOW_HTTP": "true",
        "AGENT_EXEC_CALLBACK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "AGENT_EXEC_NOTIFIER_DRAIN_S": "0.2",
        "AGENT_EXEC_ENVIRONMENT": "sandbox",
    }

    def run(**more: str) -> Process:
        name = f"notifier-{len(started)}"
        started.append(Process(name, ["-m", "notifier"], env=env | more, log=tmp_path / f"{name}.log"))
        return started[-1]

    yield run
    for process in started:
        process.kill()


async def stands(store: Store, ref: CallbackRef, state: str) -> None:
    async def so() -> bool:
        return (await store.run(callbacks.look(ref))).state == state

    await eventually(so)


async def test_a_sender_killed_before_its_note_has_the_same_callback_sent_again(
    receiver: Receiver, start: Start, async_store: Store, store: BlockingStore
) -> None:
    receiver.may_answer.clear()
    ref = await ended_soon(async_store, receiver.url, rules=RULES)
    first = start()
    await until(lambda: receiver.arrivals)
    first.kill()
    receiver.may_answer.set()
    second = start()
    await until(lambda: "callbacks may go" in second.output)
    assert len(receiver.arrivals) == 1, "its lease has not lapsed"
    time_passes(store, "acme", seconds=60)
    await stands(async_store, ref, "delivered")
    assert [arrival.callback_id for arrival in receiver.arrivals] == [ref.callback_id] * 2
    assert receiver.arrivals[0].body == receiver.arrivals[1].body
    for arrival in receiver.arrivals:
        arrival.verify(SECRET)


async def test_one_that_stands_by_sends_too(receiver: Receiver, start: Start, async_store: Store) -> None:
    receiver.may_answer.clear()
    processes = [start(AGENT_EXEC_CALLBACKS_AT_ONCE="1") for _ in range(2)]
    await until(lambda: any("standing by" in process.output for process in processes))
    refs = [await ended_soon(async_store, receiver.url, rules=RULES) for _ in range(2)]
    await until(lambda: len(receiver.arrivals) == 2)
    receiver.may_answer.set()
    for ref in refs:
        await stands(async_store, ref, "delivered")


async def test_sigterm_hands_back_what_does_not_arrive_in_time(
    receiver: Receiver, start: Start, async_store: Store
) -> None:
    receiver.may_answer.clear()
    ref = await ended_soon(async_store, receiver.url, rules=RULES)
    running = start()
    await until(lambda: receiver.arrivals)
    assert await asyncio.to_thread(running.stop) == 0
    view = await async_store.run(callbacks.look(ref))
    assert (view.state, view.attempts) == ("waiting", 0)
    assert "Traceback" not in running.output
    assert "s3cret" not in running.output
    assert SECRET not in running.output


async def test_a_redis_that_is_away_while_one_is_sent_loses_nothing(
    receiver: Receiver, start: Start, tmp_path: Path
) -> None:
    receiver.may_answer.clear()
    with EmbeddedServer(tmp_path / "redis") as server, closing(BlockingStore(server.url)) as own:
        message = asked(receiver.url)
        ref = ended(own, message, rules=RULES)
        running = start(AGENT_EXEC_REDIS_URL=server.url)
        await until(lambda: receiver.arrivals)
        own.redis.execute_command("CLIENT", "PAUSE", "6000", "ALL")  # type: ignore[no-untyped-call]
        receiver.may_answer.set()
        await until(lambda: "Redis does not answer" in running.output, within_s=10)
        await until(lambda: "Redis serves again" in running.output, within_s=10)
        await until(lambda: own.run(callbacks.look(ref)).state == "delivered")
        assert len(receiver.arrivals) == 1
        await asyncio.to_thread(running.stop)


def test_a_secret_that_is_none_ends_it_with_one_sentence(tmp_path: Path) -> None:
    environment = {"AGENT_EXEC_CALLBACK_SECRET": "whsec_c2hvcnQ=", "AGENT_EXEC_ENVIRONMENT": "sandbox"}
    process = Process("notifier", ["-m", "notifier"], env=environment, log=tmp_path / "log")
    wait_until(lambda: not process.running)
    assert process.stop() == 1
    assert process.output.startswith("Error: AGENT_EXEC_CALLBACK_SECRET: a secret has 5 bytes")
    assert "c2hvcnQ" not in process.output
