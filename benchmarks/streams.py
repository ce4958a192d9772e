"""Streams at once in one worker process, memory of each and CPU a token: ours against threads with the SDK's own loop.

    python -m benchmarks.streams [--streams 1000] [--peer-streams 200] [--rounds 1] [--gap-s 0.25] [--slots 1200]

Every stream is 100 tokens, and none begins before all are open. Ours are whole executions: accepted, claimed, streamed into
the event log, recorded. The peer's is stock Celery with `-P threads` and
the synchronous openai SDK, and its tokens go nowhere. Memory is the most that the
worker has, less what it had idle after a few; CPU is the worker's over the whole run, and from when all are open. In turn:
ours at the peer's number, the peer; then ours alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from celery import Celery

from agent_exec import AgentExecClient, ExecutionRequest
from agent_exec.embedded import free_port
from benchmarks import processes
from benchmarks.processes import Worker
from benchmarks.wire import TOKENS

TARGET_STREAMS = 1_000
TARGET_KB = 100
#: Before anything is measured: imports, connections, the allocator's first pages.
WARM = 10
END_WITHIN_S = 240.0
PEER_QUEUE = "streams"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one round: streams that were open at once, memory of each in kB, CPU a token in µs: in all, once all were open."""

    at_once: int
    kb: float
    worker_us: float
    streaming_us: float
    redis_us: float


@dataclass(frozen=True, slots=True)
class Side:
    """A worker, and how it is given streams: `start` returns when the tasks are queued."""

    server: processes.Server
    worker: Worker
    wire: str
    start: Callable[[int, str], None]
    ended: Callable[[], bool]

    def warm(self) -> None:
        """Run a few that end at once."""
        self.start(WARM, "quick")
        assert processes.wait_for(self.ended, within_s=END_WITHIN_S), self.worker.last_words

    def round(self, streams: int) -> Cost:
        """Run so many at once."""
        idle = self.worker.rss_bytes
        worker_s, redis_s = self.worker.cpu_s, self.server.cpu_s
        _ask(f"{self.wire}/hold/{streams}")
        self.start(streams, "script")
        at_once, open_s, rss = 0, 0.0, idle

        def over() -> bool:
            nonlocal at_once, open_s, rss
            streaming = int(_ask(f"{self.wire}/streams")["open"])
            if streaming == streams > at_once:
                open_s = self.worker.cpu_s
            at_once, rss = max(at_once, streaming), max(rss, self.worker.rss_bytes)
            return bool(at_once == streams and not streaming) and self.ended()

        assert processes.wait_for(over, within_s=END_WITHIN_S), f"{at_once} at once: {self.worker.last_words}"
        tokens, ended_s = streams * TOKENS, self.worker.cpu_s
        return Cost(
            at_once=at_once,
            kb=(rss - idle) / streams / 1e3,
            worker_us=(ended_s - worker_s) / tokens * 1e6,
            streaming_us=(ended_s - open_s) / tokens * 1e6,
            redis_us=(self.server.cpu_s - redis_s) / tokens * 1e6,
        )


@contextlib.contextmanager
def ours(wire: str, *, slots: int) -> Iterator[Side]:
    """Run our worker."""
    with processes.server() as server, AgentExecClient(server.url) as client:
        env = {
            "AGENT_EXEC_REDIS_URL": server.url,
            "OPENAI_BASE_URL": f"{wire}/v1",
            "OPENAI_API_KEY": "x",
            "AGENT_EXEC_LOG_LEVEL": "WARNING",
            "AGENT_EXEC_PROVIDER_FIRST_TOKEN_TIMEOUT_S": str(END_WITHIN_S),  # all wait for the last to open
        }
        waiting: list[str] = []

        def start(streams: int, model: str) -> None:
            work = [_request(model)] * streams
            waiting.extend(str(one) for one in client.submit_many(work, tenant_id="bench"))

        def ended() -> bool:
            while waiting:
                final = client.wait("bench", waiting.pop(), timeout_s=END_WITHIN_S)
                assert final.status == "completed", final.error
            return True

        arguments = ["worker", "-c", str(slots), "--loglevel", "WARNING"]
        with processes.process(processes.celery("tasks", *arguments), env=env) as worker:
            yield Side(server, worker, wire, start, ended)


@contextlib.contextmanager
def peer(wire: str, *, slots: int) -> Iterator[Side]:
    """Run stock's worker on threads."""
    with processes.server() as server, Celery(broker=server.url, set_as_current=False) as app:

        def start(streams: int, model: str) -> None:
            for _ in range(streams):
                app.send_task("sync_stream", args=[wire, model], queue=PEER_QUEUE, ignore_result=True)

        def ended() -> bool:
            return not server.redis.exists(PEER_QUEUE, "unacked")

        arguments = ["worker", "-P", "threads", "-c", str(slots), "-Q", PEER_QUEUE, "-l", "ERROR"]
        command = processes.celery("benchmarks.sync_stream", "-b", server.url, *arguments)
        with processes.process(command) as worker:
            yield Side(server, worker, wire, start, ended)


def run(arguments: Sequence[str] = ()) -> None:
    """Print memory and CPU of both, and the ratios."""
    options = _options(arguments)
    port = free_port()
    wire = f"http://127.0.0.1:{port}"
    serve = ["-m", "benchmarks.wire", "--port", str(port), "--gap", str(options.gap_s)]
    rounds: dict[str, list[Cost]] = {"ours": [], "peer": []}
    with processes.process(serve) as model:
        assert processes.wait_for(lambda: _listens(wire), within_s=20), model.last_words
        _ask(f"{wire}/hold/0")
        with ours(wire, slots=options.slots) as fair, peer(wire, slots=options.peer_streams) as stock:
            for side in (fair, stock):
                side.warm()
            for _ in range(options.rounds):
                rounds["ours"].append(fair.round(options.peer_streams))
                rounds["peer"].append(stock.round(options.peer_streams))
        with ours(wire, slots=options.slots) as fair:  # a fresh one, whose memory nobody has used
            _ask(f"{wire}/hold/0")
            fair.warm()
            many = fair.round(options.streams)
    few = {name: _median(costs) for name, costs in rounds.items()}
    for name, cost in (
        (f"ours, {options.streams:,}", many),
        (f"ours, {options.peer_streams:,}", few["ours"]),
        (f"peer, {options.peer_streams:,}", few["peer"]),
    ):
        print(
            f"  {name:<12} {cost.at_once:6,} at once {cost.kb:7.1f} kB a stream {cost.worker_us:8.1f} µs CPU a token "
            f"({cost.streaming_us:.1f} once all are open), Redis {cost.redis_us:6.1f}"
        )
    ours_few, theirs = few["ours"], few["peer"]
    print(
        f"  ours / peer at {options.peer_streams:,}: memory {ours_few.kb / theirs.kb:.2f}, "
        f"worker's CPU {ours_few.worker_us / theirs.worker_us:.2f}, "
        f"with Redis {(ours_few.worker_us + ours_few.redis_us) / (theirs.worker_us + theirs.redis_us):.2f}"
    )
    print(f"  target: {TARGET_STREAMS:,} at once in one process, at most {TARGET_KB} kB each")


def _request(model: str) -> ExecutionRequest:
    config = {"agent_id": "weather", "provider": "openai", "model": model}
    return ExecutionRequest.model_validate({"agent_id": "weather", "query": "weather in Lima?", "agent_config": config})


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        at_once=min(cost.at_once for cost in costs),
        kb=statistics.median(cost.kb for cost in costs),
        worker_us=statistics.median(cost.worker_us for cost in costs),
        streaming_us=statistics.median(cost.streaming_us for cost in costs),
        redis_us=statistics.median(cost.redis_us for cost in costs),
    )


def _listens(wire: str) -> bool:
    try:
        return "open" in _ask(f"{wire}/streams")
    except OSError:
        return False


def _ask(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 a server of our own
        told: dict[str, int] = json.load(answer)
        return told


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1_000, help="ours, at once")
    parser.add_argument("--peer-streams", type=int, default=200, help="the peer's, and ours beside it")
    parser.add_argument("--slots", type=int, default=1_200, help="tasks at once that our worker takes (-c)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gap-s", type=float, default=0.25, help="between two tokens")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
