"""`python -m notifier`, a real process: killed, stopped, misconfigured."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_exec import keys
from agent_exec.store import Store
from notifier import outbox
from notifier.outbox import Left
from tests.notifier.conftest import TOKEN
from tests.notifier.played_orchestrator import Orchestrator, in_order, until
from tests.notifier.played_work import Work, all_done, eventually
from tests.processes import Process, wait_until

Start = Callable[[], Process]


@pytest.fixture
def start(orchestrator: Orchestrator, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a notifier; whatever still runs at the end of the test is stopped."""
    started: list[Process] = []
    env = {
        "AGENT_EXEC_REDIS_URL": redis_url,
        "AGENT_EXEC_ORCHESTRATOR_WS_URL": orchestrator.url,
        "AGENT_EXEC_SERVICE_TOKEN": TOKEN,
        "AGENT_EXEC_NOTIFIER_BACKOFF_CAP_S": "0.1",
        "AGENT_EXEC_NOTIFIER_LEASE_S": "1",
        "AGENT_EXEC_LOG_LEVEL": "DEBUG",
    }

    def run() -> Process:
        name = f"notifier-{len(started)}"
        started.append(Process(name, ["-m", "notifier"], env=env, log=tmp_path / f"{name}.log"))
        return started[-1]

    yield run
    for process in started:
        process.kill()


async def stopped(process: Process, *, by: signal.Signals = signal.SIGTERM, within_s: float = 10) -> int:
    """Ask it to end, once, and return its exit code."""
    process.send(by)
    await until(lambda: not process.running, within_s=within_s)
    return process.stop()


async def test_frames_sent_before_a_kill_are_sent_again_with_the_same_ids(
    orchestrator: Orchestrator, work: Work, start: Start, async_store: Store
) -> None:
    """F47."""
    orchestrator.acks = lambda frame: frame["sequence"] == 1
    hold = await work.begin()
    execution_id = hold.ref.execution_id
    first = start()
    await until(lambda: orchestrator.has_all(execution_id, 1))
    await work.tokens(hold, 5)
    await until(lambda: orchestrator.has_all(execution_id, 6))
    first.kill()
    orchestrator.acks = lambda _: True
    second = start()
    await until(lambda: orchestrator.frames[-1].get("sequence") == 6 and len(orchestrator.handshakes) == 2)
    await work.finish(hold)
    await until(lambda: orchestrator.has_all(execution_id, 7))
    assert await stopped(second) == 0
    assert await async_store.run(outbox.left()) == Left(0, 0)
    frames = [frame for frame in orchestrator.frames if frame["sequence"] == 5]
    assert len(frames) == 2
    assert frames[0] == frames[1]


async def test_nothing_is_lost_while_notifiers_are_killed(
    orchestrator: Orchestrator, work: Work, start: Start, async_store: Store
) -> None:
    holds = [await work.begin() for _ in range(4)]
    for life in range(3):
        running = start()
        await until(lambda life=life: len(orchestrator.handshakes) > life)  # type: ignore[misc]
        seen = len(orchestrator.frames)
        for hold in holds:
            await work.tokens(hold, 50)
        await until(lambda seen=seen: len(orchestrator.frames) > seen)  # type: ignore[misc]
        running.kill()
    last = start()
    executions = [hold.ref.execution_id for hold in holds]
    await until(lambda: all(orchestrator.has_all(execution_id, 151) for execution_id in executions))
    await all_done(async_store)
    assert await stopped(last) == 0
    assert all(in_order(sequences) for sequences in orchestrator.sequences().values())


async def test_a_second_process_takes_over_from_a_killed_one(
    orchestrator: Orchestrator, work: Work, start: Start, async_store: Store
) -> None:
    active, standby = start(), start()
    await until(lambda: "standing by" in active.output + standby.output)
    if "standing by" in active.output:
        active, standby = standby, active
    await until(lambda: orchestrator.open)
    active.kill()
    hold = await work.begin()
    await until(lambda: orchestrator.has_all(hold.ref.execution_id, 1), within_s=5)
    assert await stopped(standby) == 0
    assert await async_store.redis.exists(keys.notifier_lease()) == 0


async def test_sigterm_lets_what_is_on_its_way_arrive(
    orchestrator: Orchestrator, work: Work, start: Start, async_store: Store
) -> None:
    orchestrator.acks = lambda _: True
    hold = await work.begin()
    running = start()
    await until(lambda: orchestrator.has_all(hold.ref.execution_id, 1))
    orchestrator.reads.clear()
    await work.tokens(hold, 10)

    async def sent() -> bool:
        return await async_store.redis.hget(keys.execution("acme", hold.ref.execution_id), "notified") == b"11"

    await eventually(sent)
    stopping = asyncio.create_task(stopped(running, within_s=3))
    await until(lambda: "stopping" in running.output)
    orchestrator.reads.set()
    assert await stopping == 0
    assert orchestrator.sequences()[hold.ref.execution_id] == list(range(1, 12))
    assert await async_store.run(outbox.left()) == Left(0, 0)


async def test_sigterm_does_not_wait_for_an_orchestrator_that_is_down(orchestrator: Orchestrator, start: Start) -> None:
    orchestrator.refuses = 503
    running = start()
    await until(lambda: len(orchestrator.handshakes) >= 2)
    assert await stopped(running, by=signal.SIGINT, within_s=5) == 0


async def test_every_line_of_its_log_is_json_and_none_holds_the_token(
    orchestrator: Orchestrator, work: Work, start: Start
) -> None:
    orchestrator.refuses = 401
    hold = await work.begin()
    running = start()
    await until(lambda: "AGENT_EXEC_SERVICE_TOKEN" in running.output)
    assert await stopped(running) == 0
    records = [json.loads(line) for line in running.output.splitlines()]
    assert {record["process"] for record in records} == {"notifier"}
    assert TOKEN not in running.output
    assert hold.ref.execution_id not in running.output


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"AGENT_EXEC_ORCHESTRATOR_WS_URL": "http://orchestrator"}, "AGENT_EXEC_ORCHESTRATOR_WS_URL"),
        ({"AGENT_EXEC_NOTIFIER_WINDOW": "none"}, "AGENT_EXEC_NOTIFIER_WINDOW"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_sentence(environment: dict[str, str], says: str, tmp_path: Path) -> None:
    process = Process("notifier", ["-m", "notifier"], env=environment, log=tmp_path / "log")
    wait_until(lambda: not process.running)
    assert process.stop() == 1
    assert process.output.startswith("Error: ")
    assert says in process.output
    assert "Traceback" not in process.output


def test_it_says_what_it_is(root: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "notifier", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "Push every event" in told.stdout
