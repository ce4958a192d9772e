"""Sockets that die at any byte, notifiers that are killed, an orchestrator that is away (faults F44, F45, F47, F48).

By real processes over real sockets. Whatever dies, and when: every event arrives, in order, at least once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agent_exec import keys
from agent_exec.store import Store
from notifier import connection, session
from notifier.connection import ConnectionLost, connect
from tests.notifier.conftest import TOKEN, Notifying
from tests.notifier.cutting_proxy import CuttingProxy
from tests.notifier.played_orchestrator import Orchestrator, until
from tests.notifier.played_work import Work, all_done
from tests.processes import Process

#: What one process may hold at the most (the goal of faults F44).
MAX_RSS_BYTES = 150_000_000
#: How much it may grow while the orchestrator is away, whatever waits: less than a tenth of what does.
MAX_GROWTH_BYTES = 4_000_000

Start = Callable[[str], Process]


@pytest.fixture
async def proxy(orchestrator: Orchestrator) -> AsyncIterator[CuttingProxy]:
    """A proxy before the orchestrator; the address of the latter is the former's."""
    one = CuttingProxy(int(orchestrator.url.split(":")[2].partition("/")[0]))
    async with one.listening():
        orchestrator.url = f"ws://127.0.0.1:{one.port}/ws/task_updates"
        yield one


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a notifier that connects to an address; whatever still runs at the end of the test is killed."""
    started: list[Process] = []

    def run(url: str) -> Process:
        env = {
            "AGENT_EXEC_REDIS_URL": redis_url,
            "AGENT_EXEC_ORCHESTRATOR_WS_URL": url,
            "AGENT_EXEC_SERVICE_TOKEN": TOKEN,
            "AGENT_EXEC_NOTIFIER_BACKOFF_CAP_S": "0.1",
            "AGENT_EXEC_NOTIFIER_LEASE_S": "0.5",
        }
        name = f"notifier-{len(started)}"
        started.append(Process(name, ["-m", "notifier"], env=env, log=tmp_path / f"{name}.log"))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def assert_in_order(orchestrator: Orchestrator, lasts: dict[str, int]) -> None:
    """Each event came when all before it had come; and sent again, it was the same to the last letter."""
    heard = dict.fromkeys(lasts, 0)
    first: dict[str, dict[str, object]] = {}
    for frame in orchestrator.frames:
        assert frame["sequence"] <= heard[frame["execution_id"]] + 1
        heard[frame["execution_id"]] = max(heard[frame["execution_id"]], frame["sequence"])
        assert first.setdefault(frame["event_id"], frame) == frame
    assert heard == lasts


async def lasts_of(store: Store, executions: list[str]) -> dict[str, int]:
    records = [keys.execution("acme", execution_id) for execution_id in executions]
    return {
        execution_id: int(await store.redis.hget(record, "sequence"))
        for execution_id, record in zip(executions, records, strict=True)
    }


@pytest.mark.timeout(150)
@pytest.mark.parametrize("acknowledges", [True, False])
async def test_whatever_dies_every_event_arrives_in_order(
    orchestrator: Orchestrator, proxy: CuttingProxy, work: Work, start: Start, async_store: Store, acknowledges: bool
) -> None:
    """Two processes over one proxy that cuts either direction after any number of bytes; one after the other is killed."""
    orchestrator.acks = lambda _: acknowledges and random.random() < 0.7
    proxy.lives = lambda: (random.randint(1, 15_000), random.choice([None, random.randint(1, 2_000)]))
    running = [start(orchestrator.url), start(orchestrator.url)]
    holds = [await work.begin() for _ in range(6)]
    for killed in range(4):
        frames, cuts, give_up_at_s = len(orchestrator.frames), proxy.cuts, time.monotonic() + 20
        while len(orchestrator.frames) == frames or proxy.cuts < cuts + 2:
            assert time.monotonic() < give_up_at_s, "no frame, or no cut"
            for hold in holds:
                await work.tokens(hold, random.randint(1, 12))
            await asyncio.sleep(random.uniform(0, 0.03))
        running[killed % 2].kill()
        running[killed % 2] = start(orchestrator.url)
    for hold in holds:
        await work.finish(hold)
    proxy.lives = lambda: (None, None)
    orchestrator.acks = lambda _: acknowledges
    lasts = await lasts_of(async_store, [hold.ref.execution_id for hold in holds])
    await until(lambda: all(orchestrator.has_all(*one) for one in lasts.items()), within_s=30)
    if acknowledges:  # of what was heard and not acknowledged before, the end was
        await all_done(async_store)
    assert_in_order(orchestrator, lasts)


@pytest.mark.timeout(180)
async def test_f44_a_hundred_thousand_events_wait_in_redis_and_not_in_memory(
    orchestrator: Orchestrator, work: Work, start: Start, async_store: Store
) -> None:
    orchestrator.refuses = 503
    orchestrator.acks = lambda frame: frame["sequence"] % 100 == 0
    one = start(orchestrator.url)
    await until(lambda: len(orchestrator.handshakes) >= 5, within_s=30)
    process = psutil.Process(one.pid)
    before = process.memory_info().rss
    holds = [await work.begin() for _ in range(20)]
    for _ in range(10):
        for hold in holds:
            await work.tokens(hold, 500, text="a word ")
    tried = len(orchestrator.handshakes)
    await until(lambda: len(orchestrator.handshakes) >= tried + 20)
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
    orchestrator.refuses = None
    lasts = await lasts_of(async_store, [hold.ref.execution_id for hold in holds])
    assert sum(lasts.values()) == 100_020
    await until(lambda: len(orchestrator.frames) >= 100_020, within_s=120)
    assert process.memory_info().rss < MAX_RSS_BYTES
    assert_in_order(orchestrator, lasts)
    assert len(orchestrator.frames) == 100_020, "and none of them twice"


async def test_f45_a_connection_that_a_proxy_has_swallowed_is_replaced(
    orchestrator: Orchestrator,
    proxy: CuttingProxy,
    work: Work,
    notifying: Notifying,
    async_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert session.PROBE_AFTER_S + connection.SILENCE_S + connection.CLOSE_TIMEOUT_S < 40, "and a pause is short"
    monkeypatch.setattr(session, "PROBE_AFTER_S", 0.2)
    monkeypatch.setattr(connection, "SILENCE_S", 0.3)
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT_S", 0.1)
    orchestrator.acks = lambda _: True
    hold = await work.begin()
    async with notifying(orchestrator_ws_url=orchestrator.url):
        await all_done(async_store)
        proxy.passes = False
        await work.tokens(hold, 5)
        await until(lambda: proxy.connections >= 2)
        proxy.passes = True
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 6))
        await all_done(async_store)
    assert_in_order(orchestrator, {hold.ref.execution_id: 6})


async def test_f45_behind_a_socket_that_is_full_nothing_waits_for_ever(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.3)
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT_S", 0.1)
    async with asyncio.timeout(5):
        async with connect(orchestrator.url, token=TOKEN) as full:
            await until(lambda: orchestrator.open)
            orchestrator.swallow()
            sending = asyncio.create_task(full.send("x" * 50_000_000))
            with pytest.raises(ConnectionLost, match="no sign of life"):
                await full.arrival()
        await sending


async def test_no_end_of_a_connection_leaves_a_socket_open(
    orchestrator: Orchestrator, proxy: CuttingProxy, notifying: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PROBE_AFTER_S", 0.05)
    monkeypatch.setattr(connection, "SILENCE_S", 0.05)
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(connection, "OPEN_TIMEOUT_S", 0.3)
    process = psutil.Process()

    async def handshakes(more: int) -> None:
        wanted = proxy.connections + more
        await until(lambda: proxy.connections >= wanted)

    async with notifying(orchestrator_ws_url=orchestrator.url, notifier_backoff_cap_s=0.01):
        await until(lambda: orchestrator.open)
        before = process.num_fds()
        orchestrator.refuses = 503
        orchestrator.sever()
        await handshakes(20)
        orchestrator.refuses, orchestrator.slams = None, 1013
        await handshakes(20)
        proxy.lives = lambda: (random.randint(1, 400), random.choice([None, random.randint(1, 200)]))
        await handshakes(1)  # that one is of those that are cut
        orchestrator.slams = None
        await handshakes(20)
        proxy.lives = lambda: (None, None)
        await until(lambda: orchestrator.open)
        proxy.passes = False
        await handshakes(5)
        proxy.passes = True
        await until(lambda: len(orchestrator.open) == 1)
        await until(lambda: process.num_fds() <= before + 3)  # Redis's pool may have some more than at the beginning
