"""How long a quiet tenant waits behind another's flood, and how exactly weights divide the service: ours and stock (F28).

    python -m benchmarks.quiet_tenant [--flood 20000] [--quiet 20] [--patience-s 3]

One worker of four slots; every task writes down that it begins, and works 5 ms. While it is busy with the flood, tenants
with one message each publish it. What counts is how many of the flood's tasks begin between a quiet tenant's publish and
its own beginning, both read from the server that orders them: it does not depend on the machine, as milliseconds do.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agent_exec.broker import fair_queue
from agent_exec.hint import Hint
from agent_exec.routing import FAMILIES
from benchmarks import processes
from benchmarks.hint_app import BEGUN, SLOTS
from benchmarks.hint_cost import PIPELINE, hint
from benchmarks.processes import Server, Worker

#: At most so many of the flood's tasks may begin before a quiet tenant's.
TARGET_AHEAD = 2
#: By how much a tenant's share may miss its weight's.
TARGET_SHARE = 0.02
FLOOD = "t00000"
WEIGHTS = {"t00001": 8.0, "t00002": 4.0, "t00003": 1.0}
#: Services over which shares are counted, a multiple of the weights' sum; and how much of it each has waiting.
SHARED_SERVICES = 2_600
#: The flood's tasks that have begun before the first quiet tenant comes.
UNDER_WAY = 100
#: Between two quiet tenants.
PAUSE_S = 0.1

#: One command that queues a hint, for a pipeline.
Command = Callable[[Hint], tuple[str | bytes | int | float, ...]]


@dataclass(frozen=True, slots=True)
class Wait:
    """A quiet tenant's: tasks of the flood that began meanwhile, and the time. `began`: it is over."""

    ahead: int
    delay_ms: float
    began: bool


@dataclass(frozen=True, slots=True)
class Side:
    """A worker with its server, and how a hint is queued there. Stock's lists have the steps 0, 3, 6 and 9."""

    server: Server
    worker: Worker
    push: Command

    def flood(self, hints: Sequence[Hint]) -> None:
        """Queue them all before any is taken."""
        with self.worker.paused():
            for start in range(0, len(hints), PIPELINE):
                with self.server.redis.pipeline(transaction=False) as pipeline:
                    for one in hints[start : start + PIPELINE]:
                        pipeline.execute_command(*self.push(one))
                    pipeline.execute()

    def begun(self) -> list[bytes]:
        """Return who has begun, in order."""
        told: list[bytes] = self.server.redis.lrange(BEGUN, 0, -1)
        return told

    def busy(self, count: int, *, within_s: float = 60.0) -> None:
        """Wait until so many tasks have begun."""
        assert processes.wait_for(lambda: int(self.server.redis.llen(BEGUN)) >= count, within_s=within_s), (
            self.worker.last_words
        )

    def wait_of(self, one: Hint, *, patience_s: float) -> Wait:
        """Publish a quiet tenant's hint, and wait until its task begins."""
        name = one.tenant_id.encode()
        with self.server.redis.pipeline(transaction=True) as pipeline:
            pipeline.llen(BEGUN)
            pipeline.execute_command(*self.push(one))
            before, _ = pipeline.execute()
        published_at = time.time()
        give_up_at = published_at + patience_s
        while True:
            since: list[bytes] = self.server.redis.lrange(BEGUN, before, -1)
            for ahead, entry in enumerate(since):
                tenant, at = entry.split()
                if tenant == name:
                    return Wait(ahead, (float(at) - published_at) * 1e3, began=True)
            if time.time() > give_up_at:
                return Wait(len(since), patience_s * 1e3, began=False)
            time.sleep(processes.LOOK_EVERY_S)


@contextlib.contextmanager
def ours() -> Iterator[Side]:
    """Run our worker."""
    with _side("fair", FAMILIES, _push_ours) as side:
        yield side


@contextlib.contextmanager
def stock(queues: Sequence[str], *, queue_of: Callable[[Hint], str]) -> Iterator[Side]:
    """Run stock's worker of these queues; `queue_of` says to which list a hint goes, with kombu's mark of its step."""
    with _side("stock", queues, lambda one: ("LPUSH", queue_of(one), one.message())) as side:
        yield side


@contextlib.contextmanager
def _side(app: str, queues: Sequence[str], push: Command) -> Iterator[Side]:
    arguments = ["worker", "-P", "threads", "-c", str(SLOTS), "-Q", ",".join(queues), "-l", "ERROR"]
    with processes.server() as server:
        server.redis.script_load(fair_queue.PUSH.source)
        command = processes.celery(f"benchmarks.hint_app:{app}", "-b", server.url, *arguments)
        with processes.process(command) as worker:
            yield Side(server, worker, push)


def _push_ours(one: Hint) -> tuple[str | bytes | int | float, ...]:
    call = one.push()
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def by_priority(one: Hint) -> str:
    """Return the tenant's list of a hint's priority: stock's 0 is most urgent."""
    step = (9 - one.priority) // 3 * 3
    return f"{one.tenant_id}\x06\x16{step}" if step else one.tenant_id


def run(arguments: Sequence[str] = ()) -> None:
    """Print the waits and the shares."""
    options = _options(arguments)
    quiet = [f"q{number:04}" for number in range(options.quiet)]
    own_queues = [FLOOD, *quiet]
    for title, flood_priority, quiet_priority in (("equal priority", 5, 5), ("flood 9, quiet 0", 9, 0)):
        with (
            ours() as fair,
            stock(own_queues, queue_of=by_priority) as apart,
            stock(["all"], queue_of=lambda _: "all") as shared,
        ):
            sides = {"ours": fair, "stock, queue a tenant": apart, "stock, one queue": shared}
            for side in sides.values():
                side.flood([_note(FLOOD, flood_priority) for _ in range(options.flood)])
            for side in sides.values():
                side.busy(min(UNDER_WAY, options.flood // 10))
            waits: dict[str, list[Wait]] = {name: [] for name in sides}
            for tenant in quiet:
                for name, side in sides.items():
                    if all(wait.began for wait in waits[name]):  # who waits in vain once need not do so again
                        one = _note(tenant, quiet_priority)
                        waits[name].append(side.wait_of(one, patience_s=options.patience_s))
                time.sleep(PAUSE_S)
        print(f"  {title}, {options.flood:,} waiting ahead:")
        for name, told in waits.items():
            print(f"    {name:<22} {_said(told)}")
    _shares(options.services)


def _note(tenant: str, priority: int) -> Hint:
    base = hint(0)
    return Hint(tenant_id=tenant, agent_id="a", execution_id=base.execution_id, step="completion.1", priority=priority)


def _said(waits: Sequence[Wait]) -> str:
    vain = [wait for wait in waits if not wait.began]
    if vain:
        return f"not begun after {vain[0].delay_ms / 1e3:.0f} s, in which {vain[0].ahead:,} of the flood's did"
    ahead = [wait.ahead for wait in waits]
    delay = [wait.delay_ms for wait in waits]
    return (
        f"{statistics.median(ahead):.0f} of the flood's begin before it, at most {max(ahead)} in {len(waits)} trials "
        f"(ours: at most {TARGET_AHEAD} wanted); {statistics.median(delay):.1f} ms, at most {max(delay):.1f}"
    )


def _shares(services: int) -> None:
    """Count the first `services` beginnings of three tenants who have more waiting than they get."""
    total = sum(WEIGHTS.values())
    with ours() as side:
        for tenant, weight in WEIGHTS.items():
            side.server.store.run(fair_queue.set_share(tenant, weight=weight))
        waiting = [tenant for tenant, weight in WEIGHTS.items() for _ in range(int(services * weight / total) + SLOTS)]
        side.flood([_note(tenant, 5) for tenant in waiting])
        side.busy(services)
        counted = Counter(entry.split()[0].decode() for entry in side.begun()[:services])
    worst = max(abs(counted[tenant] / services / (weight / total) - 1) for tenant, weight in WEIGHTS.items())
    print(
        f"  weights {':'.join(f'{weight:.0f}' for weight in WEIGHTS.values())}, {services:,} services: "
        f"{':'.join(f'{counted[tenant]:,}' for tenant in WEIGHTS)}, a share is off by {worst:.1%} at most "
        f"(target {TARGET_SHARE:.0%})"
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flood", type=int, default=20_000, help="messages of the flood")
    parser.add_argument("--quiet", type=int, default=20, help="quiet tenants, one after the other")
    parser.add_argument("--patience-s", type=float, default=3.0, help="after this a quiet tenant has waited in vain")
    parser.add_argument("--services", type=int, default=SHARED_SERVICES, help="over which shares are counted")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
