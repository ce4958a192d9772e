"""What one link of an agent's chain costs: our steps that do nothing, against stock's `chain()` and `chord()` of such tasks.

    python -m benchmarks.chain_step [--executions 20] [--links 40] [--joins 10] [--rounds 3]

Ours is the real way of a step: hint, claim, record, next hint, on the worker as deployed; what a link leaves behind is a
journal that survives the worker. Stock's is its own canvas on `-P threads` with late acknowledgements: a chain, whose
messages carry the rest of it, and a loop of chords, each started by the body of the one before, their results in Redis. Both
send the events that Flower shows. CPU is of many at once, latency of one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, chain, signature
from celery.canvas import Signature

from agent_exec import AgentExecClient, ExecutionRequest
from benchmarks import processes
from benchmarks.hint_app import LAST, LINK, MEMBERS, OVER, SLOTS, TURN
from benchmarks.processes import Server, Worker

QUEUE = "links"
#: A turn, and the members of its chord; of ours, and its tool calls.
JOINED = MEMBERS + 1
WITHIN_S = 60.0
LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one link: CPU of the worker and of Redis with many at once, and the time of one alone."""

    worker_us: float
    redis_us: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Side:
    """A worker, and how it runs `count` chains, or chords, of `length`; each returns when they are over."""

    server: Server
    worker: Worker
    chains: Callable[[int, int], None]
    joins: Callable[[int, int], None]

    def round(self, work: Callable[[int, int], None], *, count: int, length: int, links: int) -> Cost:
        """Run them, where each is so many `links` in all."""
        worker_s, redis_s = self.worker.cpu_s, self.server.cpu_s
        work(count, length)
        worker_us = (self.worker.cpu_s - worker_s) / (count * links) * 1e6
        redis_us = (self.server.cpu_s - redis_s) / (count * links) * 1e6
        began = time.perf_counter()
        work(1, length)
        return Cost(worker_us, redis_us, (time.perf_counter() - began) / links * 1e3)


@contextlib.contextmanager
def ours() -> Iterator[Side]:
    """Run the service's worker."""
    with processes.server() as server, AgentExecClient(server.url) as client:

        def work(shape: str) -> Callable[[int, int], None]:
            def run_all(count: int, length: int) -> None:
                request = ExecutionRequest.model_validate(
                    {
                        "agent_id": "none",
                        "query": f"{shape} {length}",
                        "agent_config": {"agent_id": "none", "provider": "openai", "model": "none"},
                    }
                )
                for one in client.submit_many([request] * count, tenant_id="bench"):
                    final = client.wait("bench", str(one), timeout_s=WITHIN_S)
                    assert final.status == "completed", final.error

            return run_all

        env = {"AGENT_EXEC_REDIS_URL": server.url, "AGENT_EXEC_LOG_LEVEL": "WARNING"}
        command = processes.celery("benchmarks.chain_app", "worker", "--loglevel", "WARNING")
        with processes.process(command, env=env) as worker:
            yield Side(server, worker, work("chain"), work("join"))


@contextlib.contextmanager
def stock() -> Iterator[Side]:
    """Run stock's worker."""
    with (
        processes.server() as server,
        Celery(broker=server.url, backend=server.url, set_as_current=False) as app,
    ):

        def link(name: str, **arguments: Any) -> Signature:
            return signature(name, kwargs=arguments, app=app, immutable=True, queue=QUEUE, ignore_result=True)

        def until_over(count: int) -> None:
            def over() -> bool:
                return int(server.redis.get(OVER) or 0) >= count

            # Looked for often: the time of one chain is what is measured. A look costs Redis some µs.
            assert processes.wait_for(over, within_s=WITHIN_S, every_s=LOOK_EVERY_S), worker.last_words
            server.redis.delete(OVER)

        def chains(count: int, length: int) -> None:
            for _ in range(count):
                chain(*[link(LINK) for _ in range(length - 1)], link(LAST), app=app).apply_async()
            until_over(count)

        def joins(count: int, length: int) -> None:
            for _ in range(count):
                link(TURN, left=length - 1, queue=QUEUE).apply_async()
            until_over(count)

        arguments = ["worker", "-P", "threads", "-c", str(SLOTS), "-Q", QUEUE, "-l", "ERROR", "-E"]
        command = processes.celery("benchmarks.hint_app:stock", "-b", server.url, "--result-backend", server.url)
        with processes.process([*command, *arguments]) as worker:
            yield Side(server, worker, chains, joins)


def run(arguments: Sequence[str] = ()) -> None:
    """Print what a link costs on both, and the ratios."""
    options = _options(arguments)
    costs: dict[tuple[str, str], list[Cost]] = {}
    with ours() as fair, stock() as peer:
        for side in (fair, peer):
            side.chains(2, 5)
            side.joins(2, 5)
        for _ in range(options.rounds):
            for name, side, prompt in (
                ("ours", fair, 1),
                ("stock", peer, 0),
            ):  # ours has a prompt before all: a link too
                links = options.links + prompt
                costs.setdefault(("chain", name), []).append(
                    side.round(side.chains, count=options.executions, length=options.links, links=links)
                )
                links = (options.joins - 1) * JOINED + 1 + prompt  # nothing is called in the last turn
                costs.setdefault(("chord", name), []).append(
                    side.round(side.joins, count=options.executions, length=options.joins, links=links)
                )
    for shape in ("chain", "chord"):
        ours_, theirs = _median(costs[shape, "ours"]), _median(costs[shape, "stock"])
        for name, cost in (("ours", ours_), ("stock", theirs)):
            print(
                f"  {shape}, {name:<6} {cost.worker_us:7.0f} µs CPU a link, Redis {cost.redis_us:6.0f}, "
                f"{cost.latency_ms:6.2f} ms alone"
            )
        print(
            f"  {shape}, ours / stock: worker {ours_.worker_us / theirs.worker_us:.2f}, "
            f"Redis {ours_.redis_us / theirs.redis_us:.2f}, "
            f"CPU of both {(ours_.worker_us + ours_.redis_us) / (theirs.worker_us + theirs.redis_us):.2f}, "
            f"latency {ours_.latency_ms / theirs.latency_ms:.2f}"
        )


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        worker_us=statistics.median(cost.worker_us for cost in costs),
        redis_us=statistics.median(cost.redis_us for cost in costs),
        latency_ms=statistics.median(cost.latency_ms for cost in costs),
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=20, help="chains at once")
    parser.add_argument("--links", type=int, default=40, help="steps of a chain")
    parser.add_argument("--joins", type=int, default=10, help="turns, or chords")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
