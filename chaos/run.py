"""One run: start the service, load it and strike it, heal it, wait until it is quiet, end it, and look at the ledgers.

Owns the order of these. Does not know which faults there are, nor what has to hold.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.evidence import Evidence
from chaos.load import Load
from chaos.neighbours import Watcher
from chaos.nemesis import Nemesis, schedule
from chaos.reading import gather, is_idle
from chaos.service import Service
from sandbox.supervised import Failed

#: Without any progress for this long, what is open will stay so: longer than every lease and every look for lost hints.
STANDSTILL_S = 120.0
#: How often progress is looked at, and told.
LOOK_S = 0.25
TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run. `executions` null: as many as `duration_s` allows; `duration_s` null: until all are submitted."""

    executions: int | None
    duration_s: float | None
    seed: int
    workers: int
    kinds: Sequence[str]
    open_at_once: int
    #: The share of executions that are cancelled.
    cancels: float
    #: Stretches the times between faults.
    calm: float
    #: Stretches the model's pauses.
    pace: float
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: the evidence, the faults that struck, and how long each part took."""

    evidence: Evidence
    struck: Counter[str]
    cuts: int
    dropped_replies: int
    retries: int
    under_fire_s: float
    quiet_after_s: float


def run(options: Options, *, directory: Path, tell: Callable[[str], None]) -> Outcome:
    """Do it all; `tell` hears of the progress.

    Raises:
        Failed: the service did not start, or the nemesis could not strike.
    """
    settings = {"AGENT_EXEC_LEASE_S": f"{options.lease_s:g}"}
    with Service(directory, workers=options.workers, pace=options.pace, settings=settings) as service:
        tell(f"{options.workers} workers, Redis, notifier, shim and neighbours are up")
        watcher = Watcher(service.neighbours)
        began = time.monotonic()
        load = Load(
            service,
            watcher,
            seed=options.seed,
            executions=options.executions,
            until=None if options.duration_s is None else began + options.duration_s,
            open_at_once=options.open_at_once,
            cancels=options.cancels,
        )
        progress = _Progress(load, watcher, began, tell)
        faults = schedule(options.seed, options.kinds, workers=options.workers, calm=options.calm)
        with Nemesis(service, faults) as nemesis:
            progress.strikes = nemesis.struck
            while load.submitting and not progress.stands_still():
                if nemesis.error is not None:
                    raise Failed(f"The nemesis failed: {nemesis.error!r}") from nemesis.error
                time.sleep(LOOK_S)
        load.stop()
        healed = time.monotonic()
        tell("healed; waiting until all is quiet")
        while load.open_executions() and not progress.stands_still():
            time.sleep(LOOK_S)
        while not is_idle(service.redis.url) and time.monotonic() < progress.changed_at + STANDSTILL_S:
            time.sleep(LOOK_S)
        quiet = time.monotonic()
        tell("asking the service to end")
        left = service.stop()
        watcher.stop()
        stragglers = [*left, *service.stragglers()]
        tell("reading the ledgers")
        evidence = gather(service, load, watcher, stragglers=stragglers)
        return Outcome(
            evidence=evidence,
            struck=nemesis.struck,
            cuts=service.proxy.cuts,
            dropped_replies=service.proxy.dropped,
            retries=load.retries,
            under_fire_s=healed - began,
            quiet_after_s=quiet - healed,
        )


class _Progress:
    """How far it has come, and since when it has come no further."""

    def __init__(self, load: Load, watcher: Watcher, began: float, tell: Callable[[str], None]) -> None:
        self.strikes: Counter[str] = Counter()
        self.changed_at = began
        self._load = load
        self._watcher = watcher
        self._began = began
        self._tell = tell
        self._told_at = began
        self._last = (0, 0)

    def stands_still(self) -> bool:
        """Look, tell now and then, and say whether nothing has moved for too long."""
        now, at = time.monotonic(), (self._load.accepted, len(self._watcher.notices))
        if at != self._last:
            self._last, self.changed_at = at, now
        if now > self._told_at + TELL_EVERY_S:
            self._told_at = now
            struck = ", ".join(f"{count} {name}" for name, count in sorted(self.strikes.items()))
            open_now = len(self._load.open_executions())
            self._tell(f"{now - self._began:4.0f} s: {at[0]} accepted, {open_now} open, {at[1]} notices; {struck}")
        return now > self.changed_at + STANDSTILL_S
