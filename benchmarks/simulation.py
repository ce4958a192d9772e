"""The scheduler's rules past this machine: 100,000 tenants, millions of hints, in plain Python checked against the scripts.

    python -m benchmarks.simulation [--tenants 100000] [--hints 1000000] [--seed 1] [--sample-tenants 2000] …

The load: single hints of any tenant (two fifths of all), bursts of 200 by a few (a fifth), 20 floods (two fifths), and in
the middle a stampede in which everybody sends one at once. Weights 1, 2, 4, 8; priorities 0–9; a twentieth of the tenants
has a cap. One hint is served at each tick of 250 µs, and is acknowledged 2,000 ticks later.

Lateness is counted against the ideal fluid server, which divides every single service among all who have work, by weight; a
round is one service of a tenant of weight 1 and eight of one of weight 8. A wait is counted in services, from the push of a
tenant that had nothing waiting nor running. Then the same operations, at a smaller size, are done on the real scripts, whose
answers must be the same one by one; and what a hint and a tenant take of Redis's memory is measured. Does not know agents
within a tenant: tests/broker has the model that does.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Any

from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import AGING_S, Delivery, Nothing, Unfinished
from agent_exec.hint import Hint
from agent_exec.routing import EXECUTION_FAMILY
from agent_exec.script import Call
from benchmarks import processes
from benchmarks.hint_cost import hint, push_ours, push_stock, tenant_name
from benchmarks.processes import Server

TICK_US = 250
AGING_US = round(AGING_S * 1e6)
#: Of a hundred tenants, so many have the weight.
WEIGHTS = ((70, 1), (20, 2), (8, 4), (2, 8))
#: Every so-manieth tenant has the cap, and no more than that in flight.
CAPPED_EVERY, CAP, UNCAPPED = 20, 20, 1 << 60
#: Shares of all hints; the rest of a tick's chances is what is left over.
SINGLE, BURST, FLOOD = 0.4, 0.2, 0.4
BURST_HINTS, FLOODS = 200, 20
#: Every so-manieth tenant sends bursts.
BURSTY_EVERY = 100
CELLS = (4, 16)


class Scheduler:
    """The rules of pop.lua and push.lua for one family. Tenants are numbers, which order as their names do."""

    def __init__(self, weights: Sequence[int], caps: Sequence[int]) -> None:
        """Take each tenant's weight and cap."""
        self._costs = [1 / weight for weight in weights]
        self._caps = caps
        self._ring: list[tuple[float, int]] = []
        self._in_ring = bytearray(len(weights))
        self._parked: dict[int, float] = {}
        self._virtual = 0.0
        self.in_flight = [0] * len(weights)
        #: Of each tenant, what waits: `score * 10 + priority`, the least first.
        self.leaves: list[list[int]] = [[] for _ in weights]

    def push(self, tenant: int, priority: int, enqueued_us: int) -> None:
        """Queue a hint; no two have the same time."""
        heappush(self.leaves[tenant], (enqueued_us - priority * AGING_US) * 10 + priority)
        if not self._in_ring[tenant] and tenant not in self._parked:
            self._in_ring[tenant] = 1
            heappush(self._ring, (self._virtual, tenant))

    def pop(self) -> tuple[int, int] | None:
        """Return whose hint is next, and when it was queued."""
        ring, leaves = self._ring, self.leaves
        while ring:
            start, tenant = ring[0]
            self._virtual = start
            cap = self._caps[tenant]
            if self.in_flight[tenant] >= cap:
                self._leave(tenant)
                self._parked[tenant] = start
            elif not leaves[tenant]:
                self._leave(tenant)
            else:
                packed = heappop(leaves[tenant])
                self.in_flight[tenant] += 1
                finish = start + self._costs[tenant]
                if self.in_flight[tenant] >= cap:
                    self._leave(tenant)
                    self._parked[tenant] = finish
                else:
                    heapreplace(ring, (finish, tenant))
                return tenant, packed // 10 + packed % 10 * AGING_US
        if not self._parked:
            self._virtual = 0.0
        return None

    def _leave(self, tenant: int) -> None:
        heappop(self._ring)
        self._in_ring[tenant] = 0

    def ack(self, tenant: int) -> None:
        """A hint of this tenant is done."""
        self.in_flight[tenant] -= 1
        owed = self._parked.pop(tenant, None)
        if owed is not None:
            self._in_ring[tenant] = 1
            heappush(self._ring, (max(owed, self._virtual), tenant))


@dataclass(frozen=True, slots=True)
class Load:
    """Who sends how much when: the same for the same numbers."""

    tenants: int
    hints: int
    seed: int
    in_flight_ticks: int

    @property
    def weights(self) -> list[int]:
        """Of each tenant."""
        of_hundred = [weight for count, weight in WEIGHTS for _ in range(count)]
        return [of_hundred[tenant * 37 % 100] for tenant in range(self.tenants)]

    @property
    def caps(self) -> list[int]:
        """Of each tenant."""
        return [CAP if tenant % CAPPED_EVERY == 7 else UNCAPPED for tenant in range(self.tenants)]

    @property
    def stampede_at(self) -> int:
        """The tick at which everybody sends."""
        return self.hints // 2

    def arrivals(self) -> Iterator[list[tuple[int, int]]]:
        """Yield, tick by tick, the tenant and the number of each arrival, until all have been sent."""
        draw = random.Random(self.seed).random
        left, tick = self.hints, 0
        flood_hints = max(1, round(self.hints * FLOOD / FLOODS))
        burst_below = SINGLE + BURST / BURST_HINTS
        flood_below = burst_below + FLOOD / flood_hints
        bursty = max(1, self.tenants // BURSTY_EVERY)
        while left > 0:
            chance = draw()
            arrived: list[tuple[int, int]] = []
            if chance < SINGLE:
                arrived = [(int(chance / SINGLE * self.tenants), 1)]
            elif chance < burst_below:
                arrived = [(int(draw() * bursty) * BURSTY_EVERY % self.tenants, min(BURST_HINTS, left))]
            elif chance < flood_below:
                arrived = [(int(draw() * self.tenants), min(flood_hints, left))]
            left -= sum(count for _, count in arrived)
            if tick == self.stampede_at:
                all_at_once = min(self.tenants, left)
                arrived += [(tenant, 1) for tenant in range(all_at_once)]
                left -= all_at_once
            yield arrived
            tick += 1


class Fluid:
    """The ideal server: at every moment it works for all who have something left, by weight. Source: Parekh, Gallager,
    "A generalized processor sharing approach to flow control", 1993."""

    def __init__(self, weights: Sequence[int]) -> None:
        """Take each tenant's weight."""
        self._weights = weights
        self._now = 0.0
        self._weight = 0
        #: Of each tenant: the virtual time at which it has nothing left, and what it had been given in all by then.
        self._ends = [0.0] * len(weights)
        self._sent = [0] * len(weights)
        self._next_ends: list[tuple[float, int]] = []

    def push(self, tenant: int, count: int) -> None:
        """Give it work."""
        ends, weight = self._ends, self._weights[tenant]
        if ends[tenant] <= self._now:
            ends[tenant] = self._now
            self._weight += weight
            heappush(self._next_ends, (self._now + count / weight, tenant))
        ends[tenant] += count / weight
        self._sent[tenant] += count

    def serve(self) -> None:
        """Do the work of one service."""
        left = 1.0
        next_ends = self._next_ends
        while next_ends:
            end, tenant = next_ends[0]
            if end < self._ends[tenant]:  # it was given more since
                heapreplace(next_ends, (self._ends[tenant], tenant))
                continue
            after = self._now + left / self._weight
            if after < end:
                self._now = after
                return
            left -= (end - self._now) * self._weight
            self._now = end
            heappop(next_ends)
            self._weight -= self._weights[tenant]

    def given(self, tenant: int) -> float:
        """Return how many services it has had."""
        return self._sent[tenant] - max(0.0, self._ends[tenant] - self._now) * self._weights[tenant]


@dataclass(slots=True)
class Fairness:
    """What the simulation has seen. Lateness is in hints of one's own, and in these divided by the weight, which are rounds;
    waits are in services."""

    services: int = 0
    late_hints: float = 0.0
    late_rounds: float = 0.0
    ahead_hints: float = 0.0
    waits: Counter[int] = field(default_factory=Counter)
    stampede_waits: Counter[int] = field(default_factory=Counter)
    most_waiting: int = 0
    most_tenants: int = 0
    served: list[int] = field(default_factory=list)
    took_s: float = 0.0


def simulate(load: Load) -> Fairness:
    """Run the load to its end."""
    began = time.perf_counter()
    weights, caps = load.weights, load.caps
    scheduler, fluid = Scheduler(weights, caps), Fluid(weights)
    seen, served = Fairness(), [0] * load.tenants
    leaves, in_flight = scheduler.leaves, scheduler.in_flight
    running: deque[tuple[int, int]] = deque()
    #: Of a tenant that was quiet: how many services there had been when it sent.
    quiet_since = [-1] * load.tenants
    stampede = Stampede()
    waiting = waiting_tenants = services = tick = enqueued_us = 0
    arrivals = load.arrivals()
    over = False
    while not (over and not waiting and not running):
        arrived = next(arrivals, None)
        over = arrived is None
        for tenant, count in arrived or ():
            if caps[tenant] == UNCAPPED:
                fluid.push(tenant, count)
            if not leaves[tenant]:
                waiting_tenants += 1
                if not in_flight[tenant] and caps[tenant] == UNCAPPED:
                    quiet_since[tenant] = services
            for number in range(count):
                enqueued_us = max(enqueued_us + 1, tick * TICK_US)
                scheduler.push(tenant, (tenant + tick + number) % 10, enqueued_us)
            waiting += count
        seen.most_waiting = max(seen.most_waiting, waiting)
        seen.most_tenants = max(seen.most_tenants, waiting_tenants)
        if tick == load.stampede_at:
            stampede.begin(services, waiting_tenants)
        while running and running[0][0] <= tick:
            scheduler.ack(running.popleft()[1])
        tick += 1
        popped = scheduler.pop()
        if popped is None:
            continue
        tenant = popped[0]
        running.append((tick + load.in_flight_ticks, tenant))
        waiting -= 1
        if caps[tenant] == UNCAPPED:
            late = fluid.given(tenant) - served[tenant]
            if late > seen.late_hints:
                seen.late_hints = late
            if late > seen.late_rounds * weights[tenant]:
                seen.late_rounds = late / weights[tenant]
            fluid.serve()
            ahead = served[tenant] + 1 - fluid.given(tenant)
            if ahead > seen.ahead_hints:
                seen.ahead_hints = ahead
            if quiet_since[tenant] >= 0:
                waits = seen.stampede_waits if stampede.covers(quiet_since[tenant]) else seen.waits
                waits[services - quiet_since[tenant]] += 1
                quiet_since[tenant] = -1
        served[tenant] += 1
        services += 1
        if not leaves[tenant]:
            waiting_tenants -= 1
            stampede.look(services, waiting_tenants)
    seen.services, seen.served, seen.took_s = services, served, time.perf_counter() - began
    return seen


@dataclass(slots=True)
class Stampede:
    """From when all send at once until few wait again, in services."""

    begun_at: int | None = None
    ended_at: int | None = None
    few: int = 0

    def begin(self, services: int, waiting_tenants: int) -> None:
        """All have sent."""
        self.begun_at, self.few = services, waiting_tenants // 100

    def look(self, services: int, waiting_tenants: int) -> None:
        """Note the end."""
        if self.begun_at is not None and self.ended_at is None and waiting_tenants <= self.few:
            self.ended_at = services

    def covers(self, at: int) -> bool:
        """Say whether it was under way."""
        return self.begun_at is not None and at >= self.begun_at and (self.ended_at is None or at < self.ended_at)


def compare(load: Load, server: Server) -> int:
    """Do the load's operations on the scripts and on the model; return how many services were in the same order.

    Raises:
        AssertionError: an answer differs.
    """
    weights, caps, store = load.weights, load.caps, server.store
    store.run_many(
        [
            fair_queue.set_share(
                tenant_name(tenant), weight=weights[tenant], cap=caps[tenant] if caps[tenant] != UNCAPPED else None
            )
            for tenant in range(load.tenants)
        ]
    )
    scheduler = Scheduler(weights, caps)
    running: deque[tuple[int, int, str]] = deque()
    arrivals, left = load.arrivals(), load.hints
    services = tick = enqueued_us = 0
    while left or running:
        calls: list[Call[Any]] = []
        for tenant, count in next(arrivals, ()):
            for number in range(count):
                enqueued_us = max(enqueued_us + 1, tick * TICK_US)
                priority = (tenant + tick + number) % 10
                scheduler.push(tenant, priority, enqueued_us)
                queue = f"{EXECUTION_FAMILY}:{tenant_name(tenant)}"
                calls.append(fair_queue.push(queue, tag=str(enqueued_us), priority=priority, message="{}"))
        while running and running[0][0] <= tick:
            _, tenant, delivery = running.popleft()
            scheduler.ack(tenant)
            calls.append(fair_queue.ack([delivery]))
        store.run_many(calls)
        tick += 1
        expected = scheduler.pop()
        while (popped := store.run(fair_queue.pop(EXECUTION_FAMILY, lease_s=3_600))) == Unfinished():
            pass
        if expected is None:
            assert popped == Nothing(), f"tick {tick}: the scripts serve {popped}, the model nobody"
            continue
        tenant, at_us = expected
        assert isinstance(popped, Delivery), f"tick {tick}: the scripts serve nobody, the model {expected}"
        assert (popped.delivery, popped.queue) == (f"{at_us}#1", f"{EXECUTION_FAMILY}:{tenant_name(tenant)}"), (
            f"tick {tick}: the scripts serve {popped}, the model {expected}"
        )
        running.append((tick + load.in_flight_ticks, tenant, popped.delivery))
        services += 1
        left -= 1
    return services


@dataclass(frozen=True, slots=True)
class Memory:
    """What Redis allocates, in bytes: for a waiting hint, for the first of a tenant beside it, and for stock's message."""

    hint: float
    tenant: float
    stock: float


def memory(server: Server, *, hints: int) -> Memory:
    """Measure it with hints as the service writes them."""

    def each(push: Callable[[Server, Sequence[Hint]], None], tenants: int) -> float:
        server.redis.flushall()
        before = server.memory_bytes
        push(server, [hint(number % tenants) for number in range(hints)])
        return (server.memory_bytes - before) / hints

    each(push_ours, hints)  # scripts and buffers are there from now on
    one_tenant, one_each, stock = each(push_ours, 1), each(push_ours, hints), each(push_stock, 1)
    server.redis.flushall()
    return Memory(hint=one_tenant, tenant=one_each - one_tenant, stock=stock)


def fullest_cell(served: Sequence[int], cells: int) -> float:
    """Return the work of the fullest cell as a multiple of the mean, tenants going to cells by the hash of their id."""
    work = [0] * cells
    for tenant, hints in enumerate(served):
        digest = hashlib.sha256(tenant_name(tenant).encode()).digest()
        work[int.from_bytes(digest[:8], "big") % cells] += hints
    return max(work) / (sum(work) / cells)


def run(arguments: Sequence[str] = ()) -> None:
    """Print fairness at scale, whether the scripts agree, and what a cell holds."""
    options = _options(arguments)
    seen = simulate(Load(options.tenants, options.hints, seed=options.seed, in_flight_ticks=options.in_flight_ticks))
    print(
        f"  {options.tenants:,} tenants, {seen.services:,} hints, seed {options.seed}: at most {seen.most_waiting:,} "
        f"hints and {seen.most_tenants:,} tenants wait at once ({seen.took_s:.0f} s)"
    )
    print(
        f"  against the ideal weighted share a tenant is at most {seen.late_rounds:.2f} rounds late, the heaviest "
        f"{seen.late_hints:.2f} hints; nobody is more than {seen.ahead_hints:.2f} hints ahead"
    )
    print(f"  a quiet tenant waits {_said(seen.waits)}")
    print(f"  and where all {options.tenants:,} send at once, {_said(seen.stampede_waits)}")
    for cells in CELLS:
        print(
            f"  tenants by hash over {cells} cells: the fullest has {fullest_cell(seen.served, cells):.2f} of the mean"
        )
    with processes.server() as server:
        sample = Load(options.sample_tenants, options.sample_hints, seed=options.seed, in_flight_ticks=50)
        agreed = compare(sample, server)
        print(
            f"  the scripts serve {agreed:,} hints of {options.sample_tenants:,} tenants in the same order, one by one"
        )
        used = memory(server, hints=options.sample_hints)
    print(
        f"  Redis's memory: {used.hint:,.0f} bytes a waiting hint, {used.tenant:,.0f} more for a tenant with any; "
        f"{used.hint / used.stock:.2f} of stock's {used.stock:,.0f}"
    )


def _said(waits: Counter[int]) -> str:
    total = waits.total()
    if not total:
        return "(none)"
    passed, told = 0, []
    marks = [0.5, 0.999]
    for wait in sorted(waits):
        passed += waits[wait]
        while marks and passed >= marks[0] * total:
            told.append(wait)
            marks.pop(0)
    return f"{told[0]:,} services in the median, {told[1]:,} at 99.9 %, at most {max(waits):,} ({total:,} waits)"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=100_000)
    parser.add_argument("--hints", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-flight-ticks", type=int, default=2_000, help="services from a hint's pop to its ack")
    parser.add_argument("--sample-tenants", type=int, default=2_000, help="tenants in the comparison with the scripts")
    parser.add_argument("--sample-hints", type=int, default=20_000)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
