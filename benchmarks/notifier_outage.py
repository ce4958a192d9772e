"""The notifier, killed again and again, while the orchestrator is away and after: what is missing, memory, time to catch up.

    python -m benchmarks.notifier_outage [--outage-s 10] [--events-per-s 50] [--kills 2] [--executions 50]

The goal (faults F44, F47): 100,000 events, ten minutes without an orchestrator, 20 kills; nothing missing, below 150 MB:

    python -m benchmarks.notifier_outage --outage-s 600 --events-per-s 167 --kills 20

Events are told at a steady pace, one execution after the other, while the orchestrator, which is this process, refuses every
connection. Half of the kills strike then; the others while it is told all that it missed. It acknowledges.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from agent_exec import submission
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, Hold, StepRef
from agent_exec.notifier_state import notifier_state
from agent_exec.store import Store
from benchmarks import processes

TENANT = "acme"
GOAL_BYTES = 150_000_000
#: Between two events that are told together; the pace is kept on the average.
TICK_S = 0.1
ALL_TOLD_WITHIN_S = 600.0


@dataclass
class Orchestrator:
    """What has arrived."""

    is_away: bool = True
    tries: int = 0
    frames: int = 0
    faults: int = 0
    heard: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    url: str = ""

    async def listen(self, socket: ServerConnection) -> None:
        """Take and acknowledge the frames of one connection."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = json.loads(await socket.recv())
                execution_id, sequence = frame["execution_id"], frame["sequence"]
                self.frames += 1
                self.faults += sequence > self.heard[execution_id] + 1
                self.heard[execution_id] = max(self.heard[execution_id], sequence)
                await socket.send(json.dumps({"ack": frame["event_id"]}))

    def greet(self, socket: ServerConnection, _: Request) -> Response | None:
        """Refuse, or not."""
        self.tries += 1
        return socket.respond(503, "away\n") if self.is_away else None

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Be there."""
        async with serve(self.listen, "127.0.0.1", 0, process_request=self.greet, ping_interval=None) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws/task_updates"
            yield


@dataclass
class Notifier:
    """The process, started anew after each kill, and the most memory that one of them had."""

    env: dict[str, str]
    rss_bytes: int = 0
    first_rss_bytes: int = 0
    kills: int = 0

    def __post_init__(self) -> None:
        """Start it."""
        self._process = processes.Worker(["-m", "notifier"], env=self.env)

    def look(self, *, has_tried: bool) -> None:
        """Note its memory; the first is that of one that has tried to connect."""
        rss_bytes = self._process.rss_bytes
        if has_tried:
            self.first_rss_bytes = self.first_rss_bytes or rss_bytes
        self.rss_bytes = max(self.rss_bytes, rss_bytes)

    def kill(self) -> None:
        """Kill it, and start another."""
        self.kills += 1
        self._process.kill()
        self._process = processes.Worker(["-m", "notifier"], env=self.env)

    def stop(self) -> None:
        """End it."""
        self._process.stop()


def run(arguments: Sequence[str] = ()) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--outage-s", type=float, default=10.0)
    parser.add_argument("--events-per-s", type=float, default=50.0)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--executions", type=int, default=50)
    asyncio.run(_outage(parser.parse_args(arguments)))


async def _outage(options: argparse.Namespace) -> None:
    orchestrator = Orchestrator()
    with processes.server() as server:
        async with orchestrator.listening(), _opened(server.url) as store:
            notifier = Notifier(
                {
                    "AGENT_EXEC_REDIS_URL": server.url,
                    "AGENT_EXEC_ORCHESTRATOR_WS_URL": orchestrator.url,
                    "AGENT_EXEC_NOTIFIER_LEASE_S": "2",
                }
            )
            try:
                await _measure(options, orchestrator, notifier, store)
            finally:
                notifier.stop()


@contextlib.asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Store]:
    store = Store(url)
    try:
        yield store
    finally:
        await store.aclose()


async def _measure(options: argparse.Namespace, orchestrator: Orchestrator, notifier: Notifier, store: Store) -> None:
    holds = [await _begun(store) for _ in range(options.executions)]
    told = len(holds)
    wanted = told + int(options.outage_s * options.events_per_s)
    kill_every_s = options.outage_s / (options.kills // 2 + 1)
    began_s, turn, next_kill_s = time.monotonic(), 0, kill_every_s
    while (now_s := time.monotonic() - began_s) < options.outage_s or told < wanted:
        due = min(wanted, len(holds) + int(now_s * options.events_per_s)) - told
        if due > 0:
            await _tell(store, holds[turn % len(holds)], due)
            told, turn = told + due, turn + 1
        if now_s >= next_kill_s and notifier.kills < options.kills // 2:
            notifier.kill()
            next_kill_s += kill_every_s
        await asyncio.sleep(TICK_S)
        notifier.look(has_tried=orchestrator.tries > 0)
    away = await store.run(notifier_state())
    print(
        f"away {now_s:.0f} s: {told} events wait, {orchestrator.tries} connects, {notifier.kills} kills, lag "
        f"{away.lag_s:.0f} s, RSS first {notifier.first_rss_bytes / 1e6:.0f} MB, most {notifier.rss_bytes / 1e6:.0f} MB",
        flush=True,
    )
    orchestrator.is_away, back_s = False, time.monotonic()
    step = told // (options.kills - notifier.kills + 1)
    next_kill = step
    while sum(orchestrator.heard.values()) < told:
        assert time.monotonic() - back_s < ALL_TOLD_WITHIN_S, "not all is told"
        if orchestrator.frames >= next_kill and notifier.kills < options.kills:
            notifier.kill()
            next_kill += step
        await asyncio.sleep(TICK_S / 10)
        notifier.look(has_tried=orchestrator.tries > 0)
    took_s = time.monotonic() - back_s
    print(
        f"back: all told after {took_s:.1f} s with {notifier.kills} kills in all, {orchestrator.frames} frames, of them "
        f"{orchestrator.frames - told} again; missing {told - sum(orchestrator.heard.values())}, out of order "
        f"{orchestrator.faults}; RSS most {notifier.rss_bytes / 1e6:.0f} MB / goal {GOAL_BYTES / 1e6:.0f} MB: ratio "
        f"{notifier.rss_bytes / GOAL_BYTES:.2f}",
        flush=True,
    )


async def _begun(store: Store) -> Hold:
    message = submission.message_of(ExecutionRequest(agent_id="desk", query="?"), tenant_id=TENANT)
    await store.run(submission.store(message, open_retention_s=86_400, max_queued=100_000))
    claim = await store.run(ledger.claim(StepRef(TENANT, message.execution_id, "prompt"), lease_s=86_400, worker="w"))
    assert isinstance(claim, Claimed)
    return claim.hold


async def _tell(store: Store, hold: Hold, count: int) -> None:
    event = Event(EventName.TOKEN, json.dumps({"token": " word", "is_final": False}))
    assert await store.run(ledger.tell(hold, [event] * count)) == "told"


if __name__ == "__main__":
    run(sys.argv[1:])
