"""The fair queue in plain Python: what the scripts must do, without Redis, time, or bounds on work."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Waiting:
    """A message from push to settlement."""

    queue: str
    priority: int
    enqueued_us: int
    deliveries: int = 0
    faults: int = 0


@dataclass
class Ring:
    """Children of a family or a tenant, each with the virtual time at which its next service starts."""

    virtual: float = 0.0
    starts: dict[str, float] = field(default_factory=dict)
    parked: dict[str, float] = field(default_factory=dict)

    def join(self, child: str) -> None:
        """A child has something to do. One that is in the ring, or parked, keeps what it owes."""
        if child not in self.parked:
            self.starts.setdefault(child, self.virtual)

    def unpark(self, child: str) -> None:
        if child in self.parked:
            self.starts[child] = max(self.parked.pop(child), self.virtual)


class FairModel:
    """Tenants by start-time fair queueing, agents within a tenant likewise, messages by priority and age."""

    def __init__(self, *, default_cap: int | None, max_faults: int, aging_us: int) -> None:
        self.default_cap, self.max_faults, self.aging_us = default_cap, max_faults, aging_us
        self.messages: dict[str, Waiting] = {}
        self.leaves: defaultdict[str, set[str]] = defaultdict(set)
        self.rings: defaultdict[str, Ring] = defaultdict(Ring)
        self.leases: dict[str, str] = {}
        self.in_flight: defaultdict[str, int] = defaultdict(int)
        self.weights: dict[str, float] = {}
        self.caps: dict[str, int] = {}
        self.dead: list[str] = []

    # -- pushing

    def push(self, queue: str, tag: str, priority: int, enqueued_us: int) -> None:
        self.messages[tag] = Waiting(queue, priority, enqueued_us)
        self._enqueue(tag)

    def _enqueue(self, tag: str) -> None:
        queue = self.messages[tag].queue
        self.leaves[queue].add(tag)
        while ":" in queue:
            parent = queue.rpartition(":")[0]
            self.rings[parent].join(queue)
            if queue in self.rings[parent].parked:
                return
            queue = parent

    # -- popping

    def pop(self, family: str) -> str | None:
        """The next queued delivery of a family; plain messages are `plain`'s."""
        tag = self._take(family, family)
        return None if tag is None else self._deliver(tag)

    def _take(self, node: str, family: str) -> str | None:
        if node != family and self.leaves[node]:
            return self._most_urgent(node)
        ring = self.rings[node]
        while ring.starts:
            child = min(ring.starts, key=lambda name: (ring.starts[name], name))
            start = ring.virtual = ring.starts.pop(child)
            if node == family and self._at_cap(child):
                ring.parked[child] = start
                continue
            tag = self._take(child, family)
            if tag is None:
                continue
            tenant = child.partition(":")[2]
            finish = start + 1 / (self.weights.get(tenant, 1.0) if node == family else 1)
            if node == family:
                self.in_flight[child] += 1
            if node == family and self._at_cap(child):
                ring.parked[child] = finish
            else:
                ring.starts[child] = finish
            return tag
        if not ring.parked:
            ring.virtual = 0.0
        return None

    def take_back(self, family: str) -> str | None:
        """The next plain message that came back."""
        if not self.leaves[family]:
            return None
        self.in_flight[family] += 1
        return self._deliver(self._most_urgent(family))

    def admit(self, family: str, tag: str, enqueued_us: int) -> str:
        """A plain message that a worker sees for the first time."""
        self.messages[tag] = Waiting(family, 0, enqueued_us)
        self.in_flight[family] += 1
        return self._deliver(tag)

    def _most_urgent(self, queue: str) -> str:
        def score(tag: str) -> tuple[int, str]:
            message = self.messages[tag]
            return message.enqueued_us - message.priority * self.aging_us, tag

        tag = min(self.leaves[queue], key=score)
        self.leaves[queue].remove(tag)
        return tag

    def _at_cap(self, tenant_node: str) -> bool:
        cap = self.caps.get(tenant_node.partition(":")[2], self.default_cap)
        return cap is not None and self.in_flight[tenant_node] >= cap

    def _deliver(self, tag: str) -> str:
        message = self.messages[tag]
        message.deliveries += 1
        delivery = f"{tag}#{message.deliveries}"
        self.leases[delivery] = tag
        return delivery

    # -- settling

    def ack(self, delivery: str) -> bool:
        tag = self._unlease(delivery)
        if tag is not None:
            del self.messages[tag]
        return tag is not None

    def give_back(self, delivery: str, *, fault: int) -> bool:
        tag = self._unlease(delivery)
        if tag is None:
            return False
        self.messages[tag].faults += fault
        if fault and self.messages[tag].faults > self.max_faults:
            self.bury(tag)
        else:
            self._enqueue(tag)
        return True

    def dead_letter(self, delivery: str) -> bool:
        tag = self._unlease(delivery)
        if tag is not None:
            self.bury(tag)
        return tag is not None

    def bury(self, tag: str) -> None:
        del self.messages[tag]
        self.dead.append(tag)

    def _unlease(self, delivery: str) -> str | None:
        tag = self.leases.pop(delivery, None)
        if tag is not None:
            node = ":".join(self.messages[tag].queue.split(":")[:2])
            self.in_flight[node] -= 1
            self.rings[node.partition(":")[0]].unpark(node)
        return tag

    # -- steering

    def set_share(self, tenant: str, weight: float | None, cap: int | None, families: list[str]) -> bool:
        old = self.weights.get(tenant), self.caps.get(tenant)
        if old == (weight, cap):
            return False
        for table, value in ((self.weights, weight), (self.caps, cap)):
            table.pop(tenant, None)  # type: ignore[attr-defined]
            if value is not None:
                table[tenant] = value  # type: ignore[index]
        for family in families:
            node, ring = f"{family}:{tenant}", self.rings[family]
            ring.unpark(node)
            if ring.starts.get(node, 0.0) > ring.virtual:
                debt = ring.starts[node] - ring.virtual
                ring.starts[node] = ring.virtual + debt * ((old[0] or 1.0) / (weight or 1.0))
        return True

    def reprioritise(self, tag: str, priority: int) -> bool:
        message = self.messages.get(tag)
        if message is None:
            return False
        message.priority = priority
        return tag in self.leaves[message.queue]

    # -- counting

    def waiting(self, node: str) -> int:
        return sum(len(tags) for queue, tags in self.leaves.items() if queue == node or queue.startswith(f"{node}:"))
