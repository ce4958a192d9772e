"""CPU of a hint's way to a worker by the number of tenants: the fair queue against kombu's own, a queue for each tenant.

    python -m benchmarks.hint_cost [--tenants 1 100 …] [--stock-up-to 5000] [--hints 3000] [--rounds 2] [--pool asyncio]

Every tenant has work waiting when the worker begins. Push, pop and acknowledgement are counted, at the worker and at its
Redis; who pushes is not. One worker and one Redis for ours, one of each per number of queues for stock, whose queues are
named when it starts; all of them stand by while one is measured, in turn. Both run no-op tasks on the same pool.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agent_exec import keys
from agent_exec.hint import Hint
from agent_exec.routing import FAMILIES
from benchmarks import processes
from benchmarks.hint_app import SLOTS
from benchmarks.processes import Server, Worker

#: What ours may cost at the most tenants, as a multiple of what it costs at one.
TARGET = 1.3
PIPELINE = 500
DRAIN_S = 300.0


@dataclass(slots=True)
class Side:
    """A transport with a worker: how hints reach it, when they are gone, and what each round has cost."""

    server: Server
    worker: Worker
    push: Callable[[Server, Sequence[Hint]], None]
    drained: Callable[[Server], bool]
    worker_us: dict[int, list[float]] = field(default_factory=dict)
    redis_us: dict[int, list[float]] = field(default_factory=dict)
    push_us: dict[int, list[float]] = field(default_factory=dict)

    def round(self, tenants: int, hints: int) -> None:
        """Push and run `hints`, spread evenly over the tenants."""
        messages = [hint(number % tenants) for number in range(hints)]
        redis_s, worker_s = self.server.cpu_s, self.worker.cpu_s
        with self.worker.paused():
            self.push(self.server, messages)
            pushed_s = self.server.cpu_s
        assert processes.wait_for(lambda: self.drained(self.server), within_s=DRAIN_S), self.worker.last_words
        self.push_us.setdefault(tenants, []).append((pushed_s - redis_s) / hints * 1e6)
        self.redis_us.setdefault(tenants, []).append((self.server.cpu_s - redis_s) / hints * 1e6)
        self.worker_us.setdefault(tenants, []).append((self.worker.cpu_s - worker_s) / hints * 1e6)

    def warm(self, tenants: int) -> None:
        """Run a few hints, and forget what they cost."""
        self.round(tenants, 200)
        for figures in (self.worker_us, self.redis_us, self.push_us):
            figures.clear()


def hint(tenant: int) -> Hint:
    """Return a hint of a no-op step, as the service writes it."""
    return Hint(tenant_id=tenant_name(tenant), agent_id="a", execution_id=str(uuid.uuid4()), step="prompt", priority=5)


def tenant_name(tenant: int) -> str:
    """Return a tenant's id."""
    return f"t{tenant:05}"


@contextlib.contextmanager
def ours(pool: str) -> Iterator[Side]:
    """Run our side: a worker of the families, whatever tenants there are."""
    arguments = ["worker", "-P", pool, "-c", str(SLOTS), "-Q", ",".join(FAMILIES), "-l", "ERROR"]
    with (
        processes.server() as server,
        processes.process(processes.celery("benchmarks.hint_app:fair", "-b", server.url, *arguments)) as worker,
    ):
        yield Side(
            server,
            worker,
            push=push_ours,
            drained=lambda server: not server.redis.exists(keys.fair_record()),
        )


@contextlib.contextmanager
def stock(pool: str, *, tenants: int) -> Iterator[Side]:
    """Run stock's side: a worker that names the queue of each tenant."""
    queues = [tenant_name(tenant) for tenant in range(tenants)]
    arguments = ["worker", "-P", pool, "-c", str(SLOTS), "-Q", ",".join(queues), "-l", "ERROR"]
    with (
        processes.server() as server,
        processes.process(processes.celery("benchmarks.hint_app:stock", "-b", server.url, *arguments)) as worker,
    ):
        yield Side(server, worker, push=push_stock, drained=lambda server: drained_stock(server, queues))


def push_ours(server: Server, hints: Sequence[Hint]) -> None:
    """Push as the service does."""
    server.store.run_many([one.push() for one in hints])


def push_stock(server: Server, hints: Sequence[Hint]) -> None:
    """Push as kombu does once a queue is declared: one LPUSH a message, to the tenant's list."""
    for start in range(0, len(hints), PIPELINE):
        with server.redis.pipeline(transaction=False) as pipeline:
            for one in hints[start : start + PIPELINE]:
                pipeline.lpush(one.tenant_id, one.message())
            pipeline.execute()


def drained_stock(server: Server, queues: Sequence[str]) -> bool:
    """Say whether nothing is un-acked, and then whether nothing is queued."""
    return not server.redis.exists("unacked") and not server.redis.exists(*queues)


def run(arguments: Sequence[str] = ()) -> None:
    """Print what a hint costs, the ratios, and what follows for one Redis."""
    options = _options(arguments)
    with contextlib.ExitStack() as stack:
        fair = stack.enter_context(ours(options.pool))
        peers = {
            tenants: stack.enter_context(stock(options.pool, tenants=tenants))
            for tenants in options.tenants
            if tenants <= options.stock_up_to
        }
        fair.warm(1)
        for tenants, side in peers.items():
            side.warm(tenants)
        for _ in range(options.rounds):
            for tenants in options.tenants:
                fair.round(tenants, max(options.hints, tenants))
                if tenants in peers:
                    # As many messages as a queue of it may have, or a tenth where each costs ten times as much.
                    peers[tenants].round(tenants, options.hints if tenants < 1_000 else max(options.hints // 5, 1))
    _report(fair, peers)


def _report(fair: Side, peers: dict[int, Side]) -> None:
    print("           ours, µs a hint     stock, µs a hint    ours / stock")
    print("  tenants   worker    Redis     worker    Redis   worker    Redis")
    median = statistics.median
    for tenants in fair.worker_us:
        worker, server = median(fair.worker_us[tenants]), median(fair.redis_us[tenants])
        line = f"  {tenants:7,} {worker:8.0f} {server:8.0f}"
        if tenants in peers:
            peer = peers[tenants]
            peer_worker, peer_server = median(peer.worker_us[tenants]), median(peer.redis_us[tenants])
            line += f"   {peer_worker:8.0f} {peer_server:8.0f} {worker / peer_worker:8.2f} {server / peer_server:8.2f}"
        print(line)
    fewest, most = min(fair.worker_us), max(fair.worker_us)
    for name, figures in (("worker", fair.worker_us), ("Redis", fair.redis_us)):
        ratio = median(figures[most]) / median(figures[fewest])
        print(f"  ours, {most:,} tenants / {fewest:,}: {name} {ratio:.2f} (target: at most {TARGET})")
    costs_us = median(fair.redis_us[most])
    print(
        f"  at {most:,} tenants a hint costs Redis {costs_us:.0f} µs, {median(fair.push_us[most]):.0f} of them the push: "
        f"one Redis carries {1e6 / costs_us:,.0f} hints a second on a core like this"
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 100, 1_000, 10_000])
    parser.add_argument("--stock-up-to", type=int, default=1_000, help="the most queues of stock's (5,000 is slow)")
    parser.add_argument("--hints", type=int, default=3_000, help="hints a round, at least one a tenant")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pool", default="threads", help="of both: threads, tasks.pool:TaskPool")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
