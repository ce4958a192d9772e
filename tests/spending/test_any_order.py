"""Any calls in any order: what workers, time and lost replies do to a tenant's day is what a plain model says, no budget is
passed by more than is stated, and nothing is left behind.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agent_exec import keys
from agent_exec.contract.completion import Usage
from agent_exec.spending.reservation import Attempt, OverBudget, Reserved, refund, reserve, settle, usd_micros
from agent_exec.spending.usage import usage
from tests.ledger.clocked import BEGIN_MS, ClockedStore

DAY_MS = 86_400_000
LIMIT_USD = 1.0
BRIEFLY = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))

ATTEMPTS = st.builds(
    Attempt,
    st.sampled_from(["acme", "globex"]),
    st.sampled_from(["a", "b", "c"]),
    st.integers(min_value=1, max_value=3),
)
PRICES = st.sampled_from([None, 0.0, 0.1, 0.4, 0.5, 0.600001])
COSTS = st.sampled_from([None, 0.0, 0.0999, 0.3, 0.75])
HOLDS_S = st.sampled_from([10.0, 60.0])
#: How often the same call is made: once, or again because its reply was lost.
TIMES = st.sampled_from([1, 1, 2])


@dataclass
class Open:
    """A reservation, or one that lapsed."""

    day: int
    micros: int
    until_ms: int
    lapsed: bool = False

    def counts(self) -> dict[str, int]:
        """What its day counts of it."""
        state = "lapsed" if self.lapsed else "reserved"
        return {f"{state}_calls": 1, f"{state}_tokens": 100, f"{state}_usd_micros": self.micros}


class Model:
    """What a tenant spends, without a thought for how it is kept."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], Open] = {}
        self.days: dict[int, Counter[str]] = {}
        #: By how much a day may be over its limit: what calls cost that was not reserved.
        self.beyond: Counter[int] = Counter()

    def sweep(self, now_ms: int) -> None:
        for key, one in list(self.open.items()):
            if one.until_ms <= now_ms and one.lapsed:
                self.days.setdefault(one.day, Counter()).update(one.counts())
                del self.open[key]
            elif one.until_ms <= now_ms:
                self.lapse(one, now_ms)

    def lapse(self, one: Open, now_ms: int) -> None:
        one.lapsed, one.until_ms = True, now_ms + DAY_MS

    def held(self, day: int) -> int:
        return sum(one.micros for one in self.open.values() if one.day == day and not one.lapsed)

    def reserve(self, attempt: Attempt, micros: int, hold_ms: int, now_ms: int) -> bool:
        self.sweep(now_ms)
        key, day = (attempt.name, attempt.number), now_ms // DAY_MS
        if key in self.open and not self.open[key].lapsed:
            return True
        self.open.pop(key, None)
        for (name, number), one in self.open.items():
            if name == attempt.name and number < attempt.number and not one.lapsed:
                self.lapse(one, now_ms)
        spent = self.days.get(day, Counter())["used_usd_micros"]
        if micros and spent + self.held(day) + micros > usd_micros(LIMIT_USD):
            return False
        self.open[key] = Open(day, micros, now_ms + hold_ms)
        return True

    def settle(self, attempt: Attempt, counts: dict[str, int], now_ms: int) -> bool:
        self.sweep(now_ms)
        one = self.open.pop((attempt.name, attempt.number), None)
        if one is None:
            return False
        self.days.setdefault(one.day, Counter()).update(counts)
        reserved = 0 if one.lapsed else one.micros
        self.beyond[one.day] += max(0, counts.get("used_usd_micros", 0) - reserved)
        return True


class AnyOrder(RuleBasedStateMachine):
    """Workers of two tenants: some settle, some die, some come late, some ask twice."""

    store: ClassVar[ClockedStore]

    def __init__(self) -> None:
        super().__init__()
        self.store.redis.flushdb()
        self.store.now_ms = BEGIN_MS
        self.store.advance(DAY_MS - 15_000 - BEGIN_MS % DAY_MS)  # midnight is near: calls last over it
        self.models = {"acme": Model(), "globex": Model()}

    @rule(attempt=ATTEMPTS, usd=PRICES, hold_s=HOLDS_S, times=TIMES)
    def reserve(self, attempt: Attempt, usd: float | None, hold_s: float, times: int) -> None:
        call = reserve(attempt, usd=usd, tokens=100, limit_usd_per_day=LIMIT_USD, holds_s=hold_s)
        micros = 0 if usd is None else usd_micros(usd)
        for _ in range(times):
            may = self.models[attempt.tenant_id].reserve(attempt, micros, int(hold_s * 1000), self.store.now_ms)
            answer = self.store.run(call)
            assert isinstance(answer, Reserved if may else OverBudget)
            if isinstance(answer, OverBudget):
                day = self.models[attempt.tenant_id].days.get(self.store.now_ms // DAY_MS, Counter())
                assert answer.spent_usd_micros == day["used_usd_micros"]
                assert answer.reserved_usd_micros == self.models[attempt.tenant_id].held(self.store.now_ms // DAY_MS)

    @rule(attempt=ATTEMPTS, cost=COSTS, waste=st.booleans(), times=TIMES)
    def settle(self, attempt: Attempt, cost: float | None, waste: bool, times: int) -> None:
        came_to = Usage(prompt_tokens=30, completion_tokens=12, total_tokens=42, cost_usd=cost)
        one = {"calls": 1, "prompt_tokens": 30, "completion_tokens": 12, "usd_micros": usd_micros(cost or 0.0)}
        counts = {f"used_{name}": by for name, by in one.items()} | {"unpriced_calls": int(cost is None)}
        counts |= {f"waste_{name}": by for name, by in one.items()} if waste else {}
        for _ in range(times):
            counted = self.models[attempt.tenant_id].settle(attempt, counts, self.store.now_ms)
            assert self.store.run(settle(attempt, came_to, waste=waste)) == counted

    @rule(attempt=ATTEMPTS, times=TIMES)
    def refund(self, attempt: Attempt, times: int) -> None:
        for _ in range(times):
            given_back = self.models[attempt.tenant_id].settle(attempt, {}, self.store.now_ms)
            assert self.store.run(refund(attempt)) == given_back

    @rule(ms=st.sampled_from([1, 9_999, 10_000, 60_000, DAY_MS]))
    def time_passes(self, ms: int) -> None:
        self.store.advance(ms)

    @rule()
    def midnight_comes(self) -> None:
        self.store.advance(DAY_MS - self.store.now_ms % DAY_MS)

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        for tenant_id, model in self.models.items():
            read = self.store.run(usage(tenant_id))
            model.sweep(self.store.now_ms)
            stored = {
                (name.decode(), one["attempt"]): Open(
                    one["day"], int(one["usd_micros"]), one["until_ms"], one.get("lapsed", False)
                )
                for name, packed in self.store.redis.hgetall(keys.spending_open(tenant_id)).items()
                for one in json.loads(packed)
            }
            assert stored == model.open
            names = {name.decode() for name in self.store.redis.zrange(keys.spending_looks(tenant_id), 0, -1)}
            assert names == {name for name, _ in model.open}, "what is open is looked at again"
            for key in self.store.redis.scan_iter(keys.spending_day_prefix(tenant_id) + "*"):
                day = int(key.decode().rpartition(":")[2])
                self._day_is_as_the_model(key, model, day)
            sums = Counter[str]()
            for counts in model.days.values():
                sums.update(counts)
            assert read.total.used.calls == sums["used_calls"]
            assert read.total.waste.prompt_tokens == sums["waste_prompt_tokens"]
            assert read.total.unpriced_calls == sums["unpriced_calls"]

    def _day_is_as_the_model(self, key: bytes, model: Model, day: int) -> None:
        fields = {name.decode(): text.decode() for name, text in self.store.redis.hgetall(key).items()}
        expected = Counter(model.days.get(day, Counter()))
        for one in model.open.values():
            if one.day == day:
                expected.update(one.counts())
        fields.pop("limit_usd_micros", None)
        stored = {name: int(text) for name, text in fields.items() if text != "0"}
        assert stored == {name: by for name, by in expected.items() if by}
        over = stored.get("used_usd_micros", 0) + stored.get("reserved_usd_micros", 0) - usd_micros(LIMIT_USD)
        assert over <= model.beyond[day], "no further over the limit than what was not reserved"
        assert self.store.redis.ttl(key) > 0

    def teardown(self) -> None:
        """When everybody has died nothing stays reserved, and after a day nothing open is known."""
        self.store.advance(60_000)
        for tenant_id in self.models:
            assert self.store.run(usage(tenant_id)).total.reserved.calls == 0
        self.the_store_is_as_the_model()
        self.store.advance(DAY_MS)
        self.the_store_is_as_the_model()
        for tenant_id in self.models:
            assert not self.store.redis.exists(keys.spending_open(tenant_id), keys.spending_looks(tenant_id))


@pytest.mark.timeout(3_600)  # the thorough profile takes its time
def test_any_calls_in_any_order(redis_url: str) -> None:
    AnyOrder.store = ClockedStore(redis_url)
    is_brief = settings.get_current_profile_name() == "default"
    try:
        run_state_machine_as_test(AnyOrder, settings=BRIEFLY if is_brief else settings.default)  # type: ignore[no-untyped-call]
    finally:
        AnyOrder.store.redis.flushdb()
        AnyOrder.store.close()
