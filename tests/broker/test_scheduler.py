"""Whatever is done in whatever order, the scripts do what the model does, and lose and leave nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_exec import keys
from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import Delivery, Nothing, Popped, Unfinished
from agent_exec.script import Call
from agent_exec.store import BlockingStore
from tests.broker.model import FairModel

FAMILIES = ["agent_execution", "agent_tools"]
QUEUES = [
    *(f"agent_execution:{tenant}" for tenant in "abcd"),
    *(f"agent_tools:{tenant}:{agent}" for tenant in "abc" for agent in "xyz"),
]
MAX_FAULTS = 2


class Scheduler(RuleBasedStateMachine):
    """The scripts beside the model."""

    deliveries: Bundle[str] = Bundle("deliveries")

    def __init__(self, store: BlockingStore) -> None:
        super().__init__()
        self.store = store
        store.redis.flushall()
        self.pushed = 0
        self.plain: dict[str, list[str]] = {}
        self.seen: list[str] = []

    def run(self, call: Call[Any]) -> Any:
        return self.store.run(call)

    @initialize(default_cap=st.sampled_from([None, 1, 3]), aging_us=st.sampled_from([0, 1, 60_000_000]))
    def begin(self, default_cap: int | None, aging_us: int) -> None:
        self.default_cap, self.aging_s = default_cap, aging_us / 1e6
        self.model = FairModel(default_cap=default_cap, max_faults=MAX_FAULTS, aging_us=aging_us)

    # -- what producers do

    @rule(queue=st.sampled_from(QUEUES), priority=st.integers(0, 9), count=st.integers(1, 4))
    def push(self, queue: str, priority: int, count: int) -> None:
        for _ in range(count):
            self.pushed += 1
            tag = f"t{self.pushed}"
            call = fair_queue.push(queue, tag=tag, priority=priority, message=tag, aging_s=self.aging_s)
            assert self.run(call) is True
            assert self.run(call) is False
            self.model.push(queue, tag, priority, self._enqueued_us(tag))

    @rule(delivery=deliveries)
    def push_a_known_tag(self, delivery: str) -> None:
        tag = delivery.rpartition("#")[0]
        if tag in self.model.messages:
            assert self.run(fair_queue.push("agent_execution:z", tag=tag, priority=9, message="again")) is False

    @rule(family=st.sampled_from(FAMILIES), step=st.sampled_from(["", "\x06\x163", "\x06\x169"]))
    def send_plain(self, family: str, step: str) -> None:
        self.pushed += 1
        self.store.redis.lpush(family + step, f"plain{self.pushed}")
        self.plain.setdefault(family + step, []).append(f"plain{self.pushed}")

    # -- what workers do

    @rule(target=deliveries, family=st.sampled_from(FAMILIES), plain_first=st.booleans(), count=st.integers(1, 4))
    def pop(self, family: str, plain_first: bool, count: int) -> Any:
        return multiple(*[delivery for _ in range(count) if (delivery := self._pop(family, plain_first)) is not None])

    def _pop(self, family: str, plain_first: bool) -> str | None:
        popped = self._popped(family, plain_first)
        if plain_first and self._expect_plain(family, popped):
            return self._delivered(popped)
        expected = self.model.pop(family)
        if expected is not None:
            assert isinstance(popped, Delivery)
            assert popped.delivery == expected
            assert popped.queue == self.model.messages[expected.rpartition("#")[0]].queue
            return self._delivered(popped)
        if not plain_first and self._expect_plain(family, popped):
            return self._delivered(popped)
        assert popped == Nothing()
        return None

    def _popped(self, family: str, plain_first: bool) -> Popped:
        call = fair_queue.pop(
            family, default_cap=self.default_cap, plain_first=plain_first, max_faults=MAX_FAULTS, lease_s=3600
        )
        while (popped := self.run(call)) == Unfinished():
            pass
        return popped

    def _expect_plain(self, family: str, popped: Popped) -> bool:
        back = self.model.take_back(family)
        if back is not None:
            assert isinstance(popped, Delivery)
            assert popped.delivery == back
            return True
        lists = {name: texts for name, texts in self.plain.items() if texts and name.startswith(family)}
        if not lists:
            return False
        assert isinstance(popped, Delivery)
        assert popped.queue == family
        text = popped.message.decode()
        source = next(name for name, texts in lists.items() if texts[0] == text)
        self.plain[source].pop(0)
        tag = popped.delivery.rpartition("#")[0]
        assert self.model.admit(family, tag, self._enqueued_us(tag)) == popped.delivery
        return True

    def _delivered(self, popped: Popped) -> str:
        assert isinstance(popped, Delivery)
        assert popped.delivery not in self.seen, "delivered twice under one name"
        self.seen.append(popped.delivery)
        return popped.delivery

    @rule(delivery=deliveries)
    def ack(self, delivery: str) -> None:
        assert self.run(fair_queue.ack([delivery])) == self.model.ack(delivery)

    @rule(delivery=deliveries)
    def requeue(self, delivery: str) -> None:
        call = fair_queue.requeue(delivery, max_faults=MAX_FAULTS)
        assert self.run(call) == self.model.give_back(delivery, fault=1)

    @rule(delivery=consumes(deliveries), other=consumes(deliveries))
    def release(self, delivery: str, other: str) -> None:
        released = sum(self.model.give_back(each, fault=0) for each in (delivery, other))
        assert self.run(fair_queue.release([delivery, other])) == released

    @rule(delivery=deliveries)
    def dead_letter(self, delivery: str) -> None:
        assert self.run(fair_queue.dead_letter(delivery, reason="a test")) == self.model.dead_letter(delivery)

    @rule(delivery=deliveries, family=st.sampled_from(FAMILIES))
    def lapse(self, delivery: str, family: str) -> None:
        held = delivery in self.model.leases
        assert self.run(fair_queue.renew([delivery], lease_s=-1)) == ([] if held else [delivery])
        self.model.give_back(delivery, fault=1)
        self._pop(family, False)  # any pop puts it back

    # -- what operators do

    @rule(
        tenant=st.sampled_from("abcd"),
        weight=st.sampled_from([None, 0.5, 2.0, 8.0]),
        cap=st.sampled_from([None, 0, 1, 2, 5]),
    )
    def set_share(self, tenant: str, weight: float | None, cap: int | None) -> None:
        changed = self.model.set_share(tenant, weight, cap, FAMILIES)
        assert self.run(fair_queue.set_share(tenant, weight=weight, cap=cap)) == changed

    @precondition(lambda self: self.pushed)
    @rule(data=st.data(), priority=st.integers(0, 9))
    def reprioritise(self, data: st.DataObject, priority: int) -> None:
        tag = f"t{data.draw(st.integers(1, self.pushed))}"
        call = fair_queue.reprioritise(tag, priority=priority, aging_s=self.aging_s)
        assert self.run(call) == self.model.reprioritise(tag, priority)

    # -- what must always hold

    @invariant()
    def counts_are_exact(self) -> None:
        depths = self.run(fair_queue.depths())
        for family in FAMILIES:
            unseen = sum(len(texts) for name, texts in self.plain.items() if name.startswith(family))
            assert depths[family].waiting == self.model.waiting(family) + unseen
            assert depths[family].plain == len(self.model.leaves[family]) + unseen
            assert self.run(fair_queue.size(family)) == self.model.waiting(family) + unseen
            for tenant, depth in depths[family].tenants.items():
                assert depth.waiting == self.model.waiting(f"{family}:{tenant}")
                assert depth.in_flight == self.model.in_flight[f"{family}:{tenant}"]
            assert depths[family].in_flight == sum(
                self.messages_of(tag).startswith(family) for tag in self.model.leases.values()
            )

    def messages_of(self, tag: str) -> str:
        return self.model.messages[tag].queue

    @invariant()
    def dead_letters_are_kept(self) -> None:
        assert [letter.tag for letter in self.run(fair_queue.dead_letters())][::-1] == self.model.dead

    def _enqueued_us(self, tag: str) -> int:
        return int(self.store.redis.hget(keys.fair_record(), tag).split()[1])  # type: ignore[union-attr]

    def teardown(self) -> None:
        """When all is done, nothing is left but what keys.py says stays."""
        if not hasattr(self, "model"):
            return
        for tenant in "abcd":
            self.set_share(tenant, None, None)
        self.run(fair_queue.ack(list(self.model.leases)))
        for delivery in list(self.model.leases):
            self.model.ack(delivery)
        for family in FAMILIES:
            while (delivery := self._pop(family, False)) is not None:
                self.ack(delivery)
        left = set(self.store.redis.keys()) - {keys.fair_clock().encode(), keys.fair_dead().encode()}
        assert not left, left
        assert not self.model.messages


@pytest.mark.timeout(120)
def test_the_scripts_do_what_the_model_does(store: BlockingStore) -> None:
    run_state_machine_as_test(
        lambda: Scheduler(store),
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
