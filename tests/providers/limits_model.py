"""A model of the rules of `providers/lua`, in plain Python: one lane and its breakers. It knows no Redis and no script.

Its numbers are its own, so that a change to one of the scripts' has to be meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


@dataclass
class Bucket:
    """What was told: so much a period, and what is left of it."""

    limit: float
    period_ms: float
    level: float
    counts_tokens: bool

    @property
    def per_ms(self) -> float:
        return self.limit / self.period_ms

    @property
    def most(self) -> float:
        return self.limit

    def wait_ms(self, missing: float) -> float:
        return missing / self.per_ms


@dataclass
class Pace:
    """A bound of our own, in requests a minute. Without a peak it is the one that a lane begins with."""

    rate: float = 960.0
    level: float = 8.0
    peak: float | None = None
    age_ms: float = 0.0
    counts_tokens: bool = False

    @property
    def per_ms(self) -> float:
        return self.rate / MINUTE_MS

    @property
    def most(self) -> float:
        return max(1.0, self.per_ms * 500)

    def wait_ms(self, missing: float) -> float:
        if self.peak is None:
            return 1000 * math.log(1 + missing * math.log(2) / (self.rate / 60)) / math.log(2)
        wait = missing * MINUTE_MS / max(self.rate, self.peak * 0.95)
        return min(wait, (wait + 10_000) / 2)

    def grow(self, passed_ms: float) -> None:
        if self.peak is not None:
            self.age_ms += passed_ms
            searched = max(0, self.age_ms - 5_000) / 60_000
            self.rate = max(6, self.peak * (0.5 + 0.45 * min(1, self.age_ms / 5_000) + searched * searched))


@dataclass
class Breaker:
    """Open, or half open; a closed one is none."""

    until_ms: int
    opened: int
    probe: object = None
    probe_until_ms: int = 0

    @property
    def open_ms(self) -> int:
        return min(60_000, 5_000 * 2 ** (self.opened - 1))

    def stops(self, ticket: object, now_ms: int) -> tuple[int, int] | None:
        """How long it lets nobody through, and over how long to spread who comes then."""
        if now_ms < self.until_ms:
            return self.until_ms - now_ms, self.open_ms
        if self.probe not in (None, ticket) and now_ms < self.probe_until_ms:
            return 2_000, 2_000
        return None

    def open_again(self, now_ms: int) -> None:
        self.opened += 1
        self.until_ms, self.probe = now_ms + self.open_ms, None


@dataclass
class Trouble:
    """What calls came to since one failed: for each tenant calls and failures."""

    since_ms: int
    failures: int = 0
    by_tenant: dict[str, list[int]] = field(default_factory=dict)

    def is_bad(self, tenant: str) -> bool:
        calls, failures = self.by_tenant[tenant]
        return 2 * failures >= calls


@dataclass
class Ticket:
    """A call that was let through."""

    tenant: str
    name: str
    tokens: int
    at_ms: int
    tells: bool


@dataclass
class Model:
    """A lane and its breakers."""

    buckets: dict[str, Bucket] = field(default_factory=dict)
    pace: Pace | None = None
    at_ms: int | None = None
    told_ms: int = 0
    paused_until_ms: int = 0
    cut_ms: int = 0
    head_ms: int = 0
    heard: bool = False
    mean: float | None = None
    #: When calls were let through.
    admitted_ms: list[int] = field(default_factory=list)
    #: (tenant, name) → when its turn begins.
    line: dict[tuple[str, str], float] = field(default_factory=dict)
    lapses_ms: dict[tuple[str, str], float] = field(default_factory=dict)
    turns: dict[str, float] = field(default_factory=dict)
    turn: float = 0.0
    #: Who was put off with nobody ahead, and with how many tokens.
    front: tuple[tuple[str, str] | None, int] = (None, 0)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    trouble: Trouble | None = None

    # Before a call.

    def admit(self, tenant: str, name: str, tokens: int, ticket: object, lease_ms: int, now_ms: int) -> list[object]:
        """What the script answers."""
        who = tenant, name
        concerned = [self.breakers[whose] for whose in ("", tenant) if whose in self.breakers]
        for breaker in concerned:
            if stopped := breaker.stops(ticket, now_ms):
                if who in self.lapses_ms:
                    self.lapses_ms[who] = now_ms + sum(stopped) + 30_000
                return ["broken", *stopped]
        self._pass_time(now_ms)
        tells = bool(concerned) or now_ms - self.head_ms >= 1_000
        wait = 0
        if self.bounds or self.paused_until_ms > now_ms:
            self._drop_lapsed(now_ms)
            start, ahead = self._standing(who)
            wait = self._wait_ms(tokens, ahead, now_ms)
            if wait > 200:
                return ["deferred", *self._put_off(who, tokens, wait, start, ahead, now_ms)]
            if who in self.line:
                self._leave(who)
                self.turn = max(self.turn, start)
                self.turns = {one: turn for one, turn in self.turns.items() if turn > self.turn}
            elif ahead:
                self.turns[tenant] = start + self._turn_of(tokens)
            for bound in self.bounds:
                bound.level -= tokens if bound.counts_tokens else 1
        if self.pace is not None and self.heard and self.pace.peak is None:
            self.pace.rate += 42
            if self.pace.rate > 60_000:
                self.pace = None
        self.admitted_ms.append(now_ms)
        self.mean = (tokens if self.mean is None else self.mean) * (1 - 1 / 8) + tokens * (1 / 8)
        if tells:
            self.head_ms = now_ms
        for breaker in concerned:
            breaker.probe, breaker.probe_until_ms = ticket, now_ms + lease_ms
        return ["admitted", wait, now_ms, int(tells)]

    # At its head, and after it.

    def answered(self, ticket: object, told: list[int], now_ms: int, tenant: str) -> None:
        """The head of an answer is there."""
        self._pass_time(now_ms)
        self._learn(told, now_ms)
        self._judge_probe("", ticket, "answered", now_ms)
        self._judge_probe(tenant, ticket, "answered", now_ms)

    def settle(
        self, call: Ticket, ticket: object, used: int, outcome: str, pause_ms: int | None, told: list[int], now_ms: int
    ) -> list[object]:
        """A call has ended; what the script answers."""
        reply: list[object] = []
        if outcome == "rate_limited" or (used != call.tokens and "tokens" in self.buckets):
            self._pass_time(now_ms)
            if bucket := self.buckets.get("tokens"):
                bucket.level = min(bucket.limit, bucket.level + call.tokens - used)
        if outcome == "rate_limited":
            self._learn(told, now_ms)
            explained = (told[0] > 0 and told[1] < 1) or (told[3] > 0 and told[4] < call.tokens)
            if not explained and call.at_ms > self.cut_ms:
                self._cut(now_ms)
            self.paused_until_ms = max(
                self.paused_until_ms, now_ms + min(HOUR_MS, 1_000 if pause_ms is None else pause_ms)
            )
            self.at_ms = self.paused_until_ms
            self._drop_lapsed(now_ms)
            who = call.tenant, call.name
            start, ahead = self._standing(who)
            wait = self._wait_ms(call.tokens, ahead, now_ms)
            reply = self._put_off(who, call.tokens, wait, start, ahead, now_ms)
        stopped = self._judge_probe("", ticket, outcome, now_ms)
        if not (self._judge_probe(call.tenant, ticket, outcome, now_ms) or stopped):
            self._count(call.tenant, outcome, now_ms)
        return reply

    # A lane's limits.

    @property
    def bounds(self) -> list[Bucket | Pace]:
        told = [self.buckets[kind] for kind in ("requests", "tokens") if kind in self.buckets]
        return [*told, *([self.pace] if self.pace is not None else [])]

    def _pass_time(self, now_ms: int) -> None:
        if self.buckets and self.told_ms + DAY_MS < now_ms:
            self.buckets = {}
        passed = max(0, now_ms - (now_ms if self.at_ms is None else self.at_ms))
        self.at_ms = max(now_ms, self.paused_until_ms)
        if self.pace is not None:
            self.pace.grow(passed)
            if self.pace.peak is not None and self.pace.rate >= 4 * max(self.pace.peak, self._lately(now_ms)):
                self.pace = None
        if self.pace is None and not self.heard:
            self.pace = Pace()
        for bound in self.bounds:
            bound.level = min(bound.most, bound.level + passed * bound.per_ms)

    def _learn(self, told: list[int], now_ms: int) -> None:
        for kind, (limit, remaining, period_ms) in (("requests", told[:3]), ("tokens", told[3:])):
            if limit > 0:
                level = min(self.buckets[kind].level if kind in self.buckets else limit, remaining)
                self.buckets[kind] = Bucket(limit, period_ms, level, counts_tokens=kind == "tokens")
                self.told_ms = now_ms
        if self.buckets and self.pace is not None and self.pace.peak is None:
            self.pace = None
        self.heard = True

    def _lately(self, now_ms: int) -> float:
        """Requests a minute, over the stretch of 2 s that runs and as much of the one before as makes it whole."""
        slices = [at_ms // 2_000 for at_ms in self.admitted_ms]
        begun = now_ms / 2_000 - (slices[-1] if slices else 0)
        if begun >= 2:
            return 0
        last, before = slices.count(slices[-1]), slices.count(slices[-1] - 1)
        return (last * (2 - begun) if begun >= 1 else before * (1 - begun) + last) * 60_000 / 2_000

    def _cut(self, now_ms: int) -> None:
        lately = self._lately(now_ms)
        if self.pace is not None and (self.pace.rate < lately or now_ms - self.paused_until_ms < 2_000):
            lately = self.pace.rate
        peak = max(6, lately)
        self.pace = Pace(rate=max(6, peak / 2), level=0, peak=peak)
        self.cut_ms = now_ms

    # Its line.

    def _standing(self, who: tuple[str, str]) -> tuple[float, int]:
        def key(one: tuple[str, str]) -> tuple[float, str]:
            return self.line[one], " ".join(one)

        if who in self.line:
            return self.line[who], sorted(self.line, key=key).index(who)
        start = max(self.turn, self.turns.get(who[0], self.turn))
        return start, sum(turn <= start for turn in self.line.values())

    def _wait_ms(self, tokens: int, ahead: int, now_ms: int) -> int:
        longest = 0.0
        mean = tokens if self.mean is None else self.mean
        tokens_ahead = max(mean, self.front[1]) + (ahead - 1) * mean if ahead else 0
        for bound in self.bounds:
            need = min(tokens, bound.most) + tokens_ahead if bound.counts_tokens else 1 + ahead
            if need > bound.level and bound.level < bound.most:
                longest = max(longest, bound.wait_ms(need - bound.level))
        return math.ceil(longest + max(0, self.paused_until_ms - now_ms))

    def _turn_of(self, tokens: int) -> float:
        mean = tokens if self.mean is None else self.mean
        its = max(((tokens if one.counts_tokens else 1) / one.per_ms for one in self.bounds), default=0)
        others = max(((mean if one.counts_tokens else 1) / one.per_ms for one in self.bounds), default=0)
        return max(100, math.floor(1_000 * its / others)) if others else 1_000

    def _leave(self, who: tuple[str, str]) -> None:
        del self.lapses_ms[who]
        del self.line[who]
        if self.front[0] == who:
            self.front = None, 0

    def _put_off(
        self, who: tuple[str, str], tokens: int, wait: int, start: float, ahead: int, now_ms: int
    ) -> list[object]:
        if ahead == 0:
            self.front = who, tokens
        told = min(300_000, wait)
        if who not in self.line:
            if start - self.turn > 10_000_000:
                return [told, 0]
            self.line[who] = start
            self.turns[who[0]] = start + self._turn_of(tokens)
        self.lapses_ms[who] = now_ms + told + 30_000
        return [told, 1 if told == wait else 2]

    def _drop_lapsed(self, now_ms: int) -> None:
        lapsed = sorted((at_ms, " ".join(who), who) for who, at_ms in self.lapses_ms.items() if at_ms <= now_ms)
        for _, _, who in lapsed[:16]:
            self._leave(who)
            if who[0] in self.turns:
                self.turns[who[0]] -= 1_000

    # The breakers.

    def _judge_probe(self, whose: str, ticket: object, outcome: str, now_ms: int) -> bool:
        breaker = self.breakers.get(whose)
        if breaker is not None and breaker.probe is ticket:
            match outcome:
                case "broken":
                    breaker.open_again(now_ms)
                case "abandoned":
                    breaker.probe = None
                case _:
                    del self.breakers[whose]
        return breaker is not None

    def _count(self, tenant: str, outcome: str, now_ms: int) -> None:
        failed = outcome == "broken"
        if outcome == "abandoned":
            return
        if self.trouble is not None and self.trouble.since_ms + 30_000 <= now_ms:
            self.trouble = None
        if self.trouble is None:
            if not failed:
                return
            self.trouble = Trouble(now_ms)
        counts = self.trouble.by_tenant.setdefault(tenant, [0, 0])
        counts[0] += 1
        counts[1] += failed
        self.trouble.failures += failed
        if not failed:
            return
        bad = sum(map(self.trouble.is_bad, self.trouble.by_tenant))
        if self.trouble.failures >= 5 and bad >= 2 and 2 * bad > len(self.trouble.by_tenant):
            self.breakers[""] = Breaker(now_ms + 5_000, 1)
            self.trouble = None
        elif counts[1] >= 5 and self.trouble.is_bad(tenant):
            self.breakers[tenant] = Breaker(now_ms + 5_000, 1)
            counts[:] = [1, 1]
