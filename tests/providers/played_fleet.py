"""A fleet of workers and a provider that counts, played on the store's clock: the scripts are real, time passes at once.

Owns what workers do with what the gate says, and the provider's own accounts. Knows nothing of the scripts' rules.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from providers import limits
from providers.limits import Admitted, Asker, Broken, Deferred, Lane
from providers.quota import MINUTE_S, Allowance, Quota
from tests.ledger.clocked import ClockedStore

LANE = Lane("openai", "f00d", "gpt-4o")
#: Between a step's time and its next call: the look at what is due, and the hint's way through the queue.
HINT_S = (0.005, 0.06)
#: Between the gate and the provider's door, and back again from there.
WIRE_S = (0.002, 0.02)
CALL_S = (0.5, 3.0)


@dataclass
class PlayedProvider:
    """A provider with buckets of its own: `rpm` requests and `tpm` tokens a minute, each full at `burst_s` seconds of it."""

    rpm: float = math.inf
    tpm: float = math.inf
    burst_s: float = 1.0
    tells: bool = True
    asks_pause: bool = True
    #: When it answers with 500, in s.
    broken_s: tuple[float, float] = (0.0, 0.0)
    at_s: float = 0.0
    requests: float = field(init=False)
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.requests, self.tokens = self.most(self.rpm), self.most(self.tpm)

    def most(self, per_minute: float) -> float:
        return per_minute * self.burst_s / 60

    def is_broken(self, at_s: float) -> bool:
        return self.broken_s[0] <= at_s < self.broken_s[1]

    def takes(self, tokens: int, *, at_s: float) -> bool:
        passed_s, self.at_s = at_s - self.at_s, at_s
        self.requests = min(self.most(self.rpm), self.requests + passed_s * self.rpm / 60)
        self.tokens = min(self.most(self.tpm), self.tokens + passed_s * self.tpm / 60)
        if self.requests < 1 or self.tokens < tokens:
            return False
        self.requests -= 1
        self.tokens -= tokens
        return True

    def quota(self) -> Quota | None:
        def allowance(per_minute: float, left: float) -> Allowance | None:
            return None if per_minute == math.inf else Allowance(int(per_minute), int(left), MINUTE_S)

        if not self.tells:
            return None
        return Quota(allowance(self.rpm, self.requests), allowance(self.tpm, self.tokens))

    def pause_s(self, tokens: int) -> float | None:
        """Whole seconds until it would take the call, as Retry-After has them."""
        if not self.asks_pause:
            return None
        requests_s = (1 - self.requests) * 60 / self.rpm if self.rpm < math.inf else 0.0
        tokens_s = (tokens - self.tokens) * 60 / self.tpm if self.tpm < math.inf else 0.0
        return math.ceil(max(requests_s, tokens_s))


@dataclass
class Seen:
    """What the provider and the callers saw, in s of the play."""

    arrived_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    failed_s: list[float] = field(default_factory=list)
    taken_s: list[tuple[float, str]] = field(default_factory=list)
    #: When the pause that a refusal asked for was over.
    paused_s: list[tuple[float, float]] = field(default_factory=list)
    asked: int = 0
    #: From a step's beginning until its call was taken, by tenant.
    waited_s: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Flood:
    """Steps of a tenant, `count` of them from `at_s` on, at once or `every_s`."""

    tenant: str
    count: int
    at_s: float = 0.0
    every_s: float = 0.0


class PlayedFleet:
    """The fleet; `play` lets it work."""

    def __init__(self, store: ClockedStore, provider: PlayedProvider, *, tokens: int = 1_000, seed: int = 1) -> None:
        self._store = store
        self._provider = provider
        self._tokens = tokens
        self._chance = random.Random(seed)
        self._began_ms = store.now_ms
        self._order = itertools.count()
        self._to_come: list[tuple[float, int, Callable[[float], None]]] = []
        self.seen = Seen()

    def play(self, floods: Iterable[Flood], *, seconds: float) -> Seen:
        """Play so long, whatever is left to do then."""
        for flood in floods:
            for number in range(flood.count):
                self._begin(Asker(flood.tenant, f"step-{number}"), at_s=flood.at_s + number * flood.every_s)
        while self._to_come and self._to_come[0][0] < seconds:
            at_s, _, happens = heapq.heappop(self._to_come)
            self._store.advance(max(0, self._began_ms + int(at_s * 1000) - self._store.now_ms))
            happens(at_s)
        return self.seen

    def _at(self, at_s: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._to_come, (at_s, next(self._order), happens))

    def _soon(self, at_s: float, within_s: tuple[float, float], happens: Callable[[float], None]) -> None:
        self._at(at_s + self._chance.uniform(*within_s), happens)

    def _begin(self, asker: Asker, *, at_s: float) -> None:
        self._soon(at_s, HINT_S, lambda now_s: self._ask(asker, at_s, now_s))

    def _ask(self, asker: Asker, began_s: float, now_s: float) -> None:
        self.seen.asked += 1
        match self._store.run(limits.admit(LANE, asker=asker, tokens=self._tokens, probe_lease_s=65.0)):
            case Admitted() as admitted:
                self._soon(now_s + admitted.after_s, WIRE_S, lambda at_s: self._arrive(admitted, began_s, at_s))
            case Deferred(wait_s) | Broken(wait_s):
                self._soon(now_s + wait_s, HINT_S, lambda at_s: self._ask(asker, began_s, at_s))

    def _arrive(self, admitted: Admitted, began_s: float, now_s: float) -> None:
        provider, asker = self._provider, admitted.asker
        self.seen.arrived_s.append(now_s)
        if provider.is_broken(now_s):
            self.seen.failed_s.append(now_s)
            self._soon(now_s, WIRE_S, lambda at_s: self._fail(admitted, began_s, at_s))
        elif provider.takes(self._tokens, at_s=now_s):
            self.seen.taken_s.append((now_s, asker.tenant_id))
            self.seen.waited_s.setdefault(asker.tenant_id, []).append(now_s - began_s)
            quota = provider.quota()
            if admitted.tell_head:
                tell = limits.answered(admitted, quota=quota)
                self._soon(now_s, WIRE_S, lambda _: self._store.run(tell))
            settle = limits.settle(admitted, outcome="answered", tokens=self._tokens)
            self._soon(now_s, CALL_S, lambda _: [self._store.run(settle)][1:])
        else:
            pause_s = provider.pause_s(self._tokens)
            self.seen.refused_s.append(now_s)
            self.seen.paused_s.append((now_s + WIRE_S[1] + 0.2, now_s + (pause_s or 0)))
            settle = limits.settle(
                admitted, outcome="rate_limited", tokens=0, quota=provider.quota(), retry_after_s=pause_s
            )
            self._soon(now_s, WIRE_S, lambda at_s: self._come_back(self._store.run(settle), asker, began_s, at_s))

    def _come_back(self, place: Deferred | None, asker: Asker, began_s: float, now_s: float) -> None:
        assert place is not None
        self._soon(now_s + place.wait_s, HINT_S, lambda at_s: self._ask(asker, began_s, at_s))

    def _fail(self, admitted: Admitted, began_s: float, now_s: float) -> None:
        self._store.run(limits.settle(admitted, outcome="broken", tokens=0))
        self._soon(now_s, (0.0, 1.0), lambda at_s: self._ask(admitted.asker, began_s, at_s))
