"""Tokens from worker through Redis and notifier to the orchestrator: added delay, rate and CPU, against two simple relays.

    python -m benchmarks.relay [--streams 20] [--tokens 250] [--gap-ms 20] [--burst-tokens 1000] [--flush-ms MS] [--rounds 1]

Every token is the time at which the model sent it, so the orchestrator, which is this process, sees how old it has become on
its way; the model's own pace is none of that. Ours is the service as it is deployed: every event stored, numbered, sent
again where it got lost. The peers pass on each token and keep none: one publishes it in Redis, for a subscriber that sends
all over one WebSocket; the other opens a WebSocket for each token. All run in turn, each on one core, where the
system lets them be told which; the model and the orchestrator have another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from agent_exec import AgentExecClient, ExecutionRequest
from benchmarks import processes, relay_peer

PACED, BURST = "paced", "burst"
TARGET_MS = 10.0
WARM = 2
END_WITHIN_S = 60.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def model(ready: Connection, *, tokens: int, burst_tokens: int, gap_s: float) -> None:
    """Answer with so many tokens, each the time of its sending in ns; paced, or a burst where the model's name is that."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        told = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "script", "choices": choices}
        return framed(b"data: " + json.dumps(told).encode() + b"\n\n")

    def framed(text: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(text), text)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                is_burst = f'"{BURST}"'.encode() in await reader.readexactly(int(length))
                writer.write(HEAD + chunk({"role": "assistant", "content": ""}))
                next_s = time.monotonic()
                for _ in range(burst_tokens if is_burst else tokens):
                    if not is_burst:
                        next_s += gap_s
                        await asyncio.sleep(next_s - time.monotonic())
                    writer.write(chunk({"content": f" {time.monotonic_ns()}"}))
                    await writer.drain()
                writer.write(chunk({}, "stop") + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def model_apart(ready: Connection, tokens: int, burst_tokens: int, gap_s: float) -> None:
    """Serve the model in a process of its own."""
    asyncio.run(model(ready, tokens=tokens, burst_tokens=burst_tokens, gap_s=gap_s))


@dataclass
class Orchestrator:
    """What has arrived: how old each token was, in ns, and when the first and the last came."""

    url: str = ""
    ages: list[int] = field(default_factory=list)
    open: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    first_ns: int = 0
    last_ns: int = 0

    def expect(self, streams: int) -> None:
        """Begin anew; it is over when so many have ended."""
        self.ages, self.open, self.first_ns = [], streams, 0
        self.over.clear()

    async def listen(self, socket: ServerConnection) -> None:
        """Take the frames of one connection."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = json.loads(await socket.recv())
                if frame["event"] != "agent_response_token":
                    continue
                self.last_ns = time.monotonic_ns()
                self.first_ns = self.first_ns or self.last_ns
                said = frame["data"]
                self.ages += [self.last_ns - int(stamp) for stamp in said["token"].split()]
                self.open -= said["is_final"]
                if not self.open:
                    self.over.set()


@dataclass(frozen=True, slots=True)
class Passed:
    """Of one round: tokens that arrived, and were sent; their age; tokens a second; CPU a token, of all processes."""

    arrived: int
    sent: int
    p50_ms: float
    p99_ms: float
    per_s: float
    cpu_us: float


class Relay(Protocol):
    """One of the three, running."""

    async def start(self, streams: int, pace: str) -> None:
        """Begin so many answers."""

    async def cpu_s(self) -> float:
        """Return what all its processes have used so far; asked when no stream is open."""


async def one_round(relay: Relay, there: Orchestrator, streams: int, pace: str, *, tokens: int) -> Passed:
    """Run so many answers of so many tokens at once."""
    there.expect(streams)
    before_s = await relay.cpu_s()
    await relay.start(streams, pace)
    with contextlib.suppress(TimeoutError):  # what was lost is seen below
        async with asyncio.timeout(END_WITHIN_S):
            await there.over.wait()
    assert len(there.ages) > 1, "nothing arrived"
    used_s, sent = await relay.cpu_s() - before_s, streams * tokens
    hundredths = statistics.quantiles(there.ages, n=100)
    return Passed(
        arrived=len(there.ages),
        sent=sent,
        p50_ms=hundredths[49] / 1e6,
        p99_ms=hundredths[98] / 1e6,
        per_s=len(there.ages) / max(there.last_ns - there.first_ns, 1) * 1e9,
        cpu_us=used_s / sent * 1e6,
    )


@dataclass(frozen=True, slots=True)
class Ours:
    """The service: worker, Redis, notifier."""

    client: AgentExecClient
    meters: list[Any]

    async def start(self, streams: int, pace: str) -> None:
        """Submit executions."""
        config = {"agent_id": "relay", "provider": "openai", "model": pace}
        request = ExecutionRequest.model_validate({"agent_id": "relay", "query": "?", "agent_config": config})
        await asyncio.to_thread(self.client.submit_many, [request] * streams, tenant_id="bench")

    async def cpu_s(self) -> float:
        """Add up the processes."""
        return sum(meter.cpu_s for meter in self.meters)


@dataclass(slots=True)
class Peer:
    """One that keeps nothing: a process that reads the model and passes on, and what it passes on through."""

    model_url: str
    through: list[str]
    meters: list[Any]
    core: int | None
    _reader: asyncio.subprocess.Process | None = None
    _readers_s: float = 0.0

    async def start(self, streams: int, pace: str) -> None:
        """Start a reader, which ends by itself."""
        with on_core(self.core):
            self._reader = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "benchmarks.relay_peer", "reader", str(streams), self.model_url, pace],
                *self.through,
                cwd=processes.ROOT,
                env={"PATH": "/usr/bin:/bin"},
                stdout=asyncio.subprocess.PIPE,
            )

    async def cpu_s(self) -> float:
        """Add up the processes; a reader tells at its end what it has used, its start not counted."""
        if self._reader is not None:
            said, _ = await self._reader.communicate()
            self._readers_s += json.loads(said.splitlines()[-1])["cpu_s"]
            self._reader = None
        return self._readers_s + sum(meter.cpu_s for meter in self.meters)


def cores() -> tuple[int | None, int | None]:
    """Return a core for the service and one for all else; None where processes cannot choose."""
    if not hasattr(os, "sched_getaffinity"):  # only Linux has it
        return None, None
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Have this process run on one core meanwhile, and those that it starts for as long as they run."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.asynccontextmanager
async def relays(
    orchestrator: Orchestrator, model_url: str, core: int | None, *, flush_ms: int | None
) -> AsyncIterator[dict[str, Relay]]:
    """Run all three."""
    with contextlib.ExitStack() as stack:
        with on_core(core):
            redis = stack.enter_context(processes.server())
            env = {
                "AGENT_EXEC_REDIS_URL": redis.url,
                "AGENT_EXEC_ORCHESTRATOR_WS_URL": orchestrator.url,
                "OPENAI_BASE_URL": f"{model_url}/v1",
                "OPENAI_API_KEY": "x",
                "AGENT_EXEC_LOG_LEVEL": "WARNING",
                **({} if flush_ms is None else {"AGENT_EXEC_TOKEN_FLUSH_MS": str(flush_ms)}),
            }
            worker = processes.process(processes.celery("tasks", "worker", "--loglevel", "WARNING"), env=env)
            meters = [
                redis,
                stack.enter_context(worker),
                stack.enter_context(processes.process(["-m", "notifier"], env=env)),
            ]
            plain = stack.enter_context(processes.server())
            subscriber = ["-m", "benchmarks.relay_peer", "subscriber", orchestrator.url, plain.url]
            passing = [plain, stack.enter_context(processes.process(subscriber))]
        client = stack.enter_context(AgentExecClient(redis.url))
        listens = await asyncio.to_thread(
            processes.wait_for, lambda: plain.redis.pubsub_numsub(relay_peer.CHANNEL)[0][1] == 1, within_s=END_WITHIN_S
        )
        assert listens, "nobody subscribes"
        yield {
            "ours": Ours(client, meters),
            "pub/sub": Peer(model_url, [orchestrator.url, plain.url], passing, core),
            "connections": Peer(model_url, [orchestrator.url], [], core),
        }


async def measure(options: argparse.Namespace, model_url: str, core: int | None) -> dict[tuple[str, str], list[Passed]]:
    """Run all in turn, both paces, `rounds` times."""
    orchestrator = Orchestrator()
    passed: dict[tuple[str, str], list[Passed]] = {}
    async with serve(orchestrator.listen, "127.0.0.1", 0, ping_interval=None, compression=None) as server:
        orchestrator.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/task_updates"
        async with relays(orchestrator, model_url, core, flush_ms=options.flush_ms) as running:
            await one_round(running["ours"], orchestrator, WARM, BURST, tokens=options.burst_tokens)
            for _ in range(options.rounds):
                for pace, tokens in ((PACED, options.tokens), (BURST, options.burst_tokens)):
                    for name, relay in running.items():
                        one = await one_round(relay, orchestrator, options.streams, pace, tokens=tokens)
                        passed.setdefault((pace, name), []).append(one)
    return passed


def run(arguments: Sequence[str] = ()) -> None:
    """Print the figures of each, and the ratios."""
    options = _options(arguments)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    core, other = cores()
    with on_core(other):
        serving = spawn.Process(
            target=model_apart, args=(there, options.tokens, options.burst_tokens, options.gap_ms / 1e3), daemon=True
        )
        serving.start()
        passed = asyncio.run(measure(options, f"http://127.0.0.1:{here.recv()}", core))
    serving.terminate()
    serving.join()
    print(f"  paced: {options.streams} streams, {options.streams / options.gap_ms * 1e3:,.0f} tokens a second in all")
    medians = {which: _median(rounds) for which, rounds in passed.items()}
    for (pace, name), one in medians.items():
        age = f"age p50 {one.p50_ms:8.1f} ms, p99 {one.p99_ms:8.1f} ms; " if pace == PACED else ""
        print(
            f"  {pace}: {name:<11} {one.arrived:,} of {one.sent:,} tokens; {age}{one.per_s:8,.0f} tokens a second, "
            f"{one.cpu_us:7.1f} us CPU a token"
        )
    for name in ("pub/sub", "connections"):
        age = medians[PACED, "ours"].p50_ms / medians[PACED, name].p50_ms
        cpu = medians[PACED, "ours"].cpu_us / medians[PACED, name].cpu_us
        rate = medians[BURST, "ours"].per_s / medians[BURST, name].per_s
        print(f"  ours / {name}: age p50 {age:.2f}, CPU {cpu:.2f}; rate in a burst {rate:.2f}")
    ours = medians[PACED, "ours"]
    met = ours.p50_ms <= TARGET_MS and all(one.arrived == one.sent for one in passed[PACED, "ours"])
    print(f"  target: age p50 at most {TARGET_MS:g} ms, none lost: {'met' if met else 'missed'}")


def _median(rounds: Sequence[Passed]) -> Passed:
    return Passed(
        arrived=min(one.arrived for one in rounds),
        sent=rounds[0].sent,
        p50_ms=statistics.median(one.p50_ms for one in rounds),
        p99_ms=statistics.median(one.p99_ms for one in rounds),
        per_s=statistics.median(one.per_s for one in rounds),
        cpu_us=statistics.median(one.cpu_us for one in rounds),
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20, help="at once")
    parser.add_argument("--tokens", type=int, default=250, help="of each, paced")
    parser.add_argument("--gap-ms", type=float, default=20.0, help="between two tokens of a stream, paced")
    parser.add_argument("--burst-tokens", type=int, default=1_000, help="of each, in a burst")
    parser.add_argument("--flush-ms", type=int, help="AGENT_EXEC_TOKEN_FLUSH_MS, if another than by default")
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
