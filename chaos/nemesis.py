"""The faults: which there are, when each is due, and how each strikes.

Owns the schedule, which follows from the seed alone: each kind has a generator of its own, so leaving one out moves no
other. Does not know what the faults are to show.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, assert_never

from chaos.service import Service


@dataclass(frozen=True, slots=True)
class KillWorker:
    """`kill -9` to the worker in a place, or the next that works."""

    place: int


@dataclass(frozen=True, slots=True)
class ReplaceWorker:
    """A rolling restart of the worker in a place: another is ready before SIGTERM."""

    place: int


@dataclass(frozen=True, slots=True)
class KillRedis:
    """`kill -9`, and a start on the same data after a while."""

    away_s: float


@dataclass(frozen=True, slots=True)
class KillNotifier:
    """`kill -9`."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Every connection to Redis is reset."""


@dataclass(frozen=True, slots=True)
class DropReplies:
    """So many scripts take effect, and their callers never hear of it."""

    count: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Redis is silent for a while; what was sent arrives afterwards."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CloseOrchestrator:
    """The orchestrator drops the notifier's connection."""


Fault = KillWorker | ReplaceWorker | KillRedis | KillNotifier | Cut | DropReplies | Hold | CloseOrchestrator


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how long from one to the next, in seconds, and how one is drawn for so many workers."""

    every_s: tuple[float, float]
    draw: Callable[[random.Random, int], Fault]


#: The first two at the pace of docs/promise.md's figures; the others between them.
KINDS: dict[str, Kind] = {
    "kill-worker": Kind((2, 7), lambda chance, workers: KillWorker(chance.randrange(workers))),
    "kill-redis": Kind((8, 14), lambda chance, _: KillRedis(round(chance.uniform(0.1, 1.5), 3))),
    "kill-notifier": Kind((9, 18), lambda _chance, _: KillNotifier()),
    "cut": Kind((4, 9), lambda _chance, _: Cut()),
    "drop-replies": Kind((1, 4), lambda chance, _: DropReplies(chance.randint(1, 4))),
    "hold": Kind((9, 18), lambda chance, _: Hold(round(chance.uniform(0.1, 2), 3))),
    "close-orchestrator": Kind((5, 12), lambda _chance, _: CloseOrchestrator()),
    "rolling": Kind((3, 6), lambda chance, workers: ReplaceWorker(chance.randrange(workers))),
}
#: A rolling restart is planned, and has another promise: it is a run of its own, unless it is asked for among the others.
DEFAULT_KINDS = tuple(name for name in KINDS if name != "rolling")


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One line of the schedule."""

    at_s: float
    fault: Fault


def schedule(seed: int, kinds: Sequence[str], *, workers: int, calm: float = 1.0) -> Iterator[Scheduled]:
    """Yield the faults without end, in the order in which they are due; `calm` stretches the times between them."""

    def of(name: str) -> Iterator[tuple[float, str, Fault]]:
        kind, chance, at_s = KINDS[name], random.Random(f"{seed}:{name}"), 0.0
        while True:
            at_s += chance.uniform(*kind.every_s) * calm
            yield at_s, name, kind.draw(chance, workers)

    for at_s, _, fault in heapq.merge(*[of(name) for name in sorted(kinds)], key=lambda one: one[:2]):
        yield Scheduled(round(at_s, 3), fault)


class Nemesis:
    """A thread that strikes as the schedule says. A context manager: nothing strikes behind its block."""

    def __init__(self, service: Service, faults: Iterator[Scheduled]) -> None:
        """Take whom to strike, and when."""
        #: How many of each kind have struck, by the name of its class.
        self.struck: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._service = service
        self._faults = faults
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and heal."""
        self._stopping.set()
        if kind is not None:
            self._service.abandon()
        self._thread.join()
        self._service.proxy.heal()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            for one in self._faults:
                if self._stopping.wait(max(0.0, began + one.at_s - time.monotonic())):
                    return
                if self._strike(one.fault):
                    self.struck[type(one.fault).__name__] += 1
        except Exception as error:  # raised where the run looks
            self.error = error

    def _strike(self, fault: Fault) -> bool:
        """Strike; say whether there was anything to strike."""
        service = self._service
        match fault:
            case KillWorker(place):
                return service.kill_worker(place)
            case ReplaceWorker(place):
                service.replace_worker(place)
            case KillRedis(away_s):
                service.restart_redis(away_s=away_s)
            case KillNotifier():
                service.kill("notifier")
            case Cut():
                service.proxy.cut()
            case DropReplies(count):
                service.proxy.drop_replies(count)
            case Hold(seconds):
                service.hold_redis(seconds)
            case CloseOrchestrator():
                service.neighbours.close_sockets()
            case other:
                assert_never(other)
        return True
