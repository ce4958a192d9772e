"""Any calls in any order: what the scripts answer is what the model says, and what is promised holds at every moment.

`pytest tests/providers --hypothesis-profile=thorough` does this at length.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agent_exec import keys
from providers import limits
from providers.limits import Admitted, Asker, Lane
from providers.quota import Allowance, Quota
from tests.ledger.clocked import ClockedStore
from tests.providers.limits_model import Model, Ticket

#: What `make test` spends on it: some seconds.
BRIEFLY = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
LANE = Lane("openai", "f00d", "gpt")
LEASE_MS = 65_000
TENANTS = st.sampled_from(["acme", "acme", "globex", "initech"])
TOKENS = st.sampled_from([1, 100, 1_000, 1_000, 5_000])
REQUESTS = st.builds(Allowance, st.sampled_from([3, 60, 6_000]), st.integers(0, 60), st.sampled_from([60.0, 86_400.0]))
ALLOWED_TOKENS = st.builds(Allowance, st.sampled_from([4_000, 600_000]), st.integers(0, 600_000), st.just(60.0))
QUOTAS = st.none() | st.builds(Quota, st.none() | REQUESTS, st.none() | ALLOWED_TOKENS)
ANY = st.integers(min_value=0, max_value=1_000)


class AnyOrder(RuleBasedStateMachine):
    """The steps of three tenants at one lane. A worker that dies is one that no rule picks any more."""

    store: ClassVar[ClockedStore]

    def __init__(self) -> None:
        super().__init__()
        self.store.redis.flushdb()
        self.store.advance(0)
        self.model = Model()
        self.under_way: list[tuple[Ticket, Admitted, object]] = []
        #: Who waits, with what, and since when for how long.
        self.waiting: list[tuple[str, str, int, int]] = []
        self.steps = 0

    @rule(tenant=TENANTS, tokens=TOKENS, times=st.sampled_from([1, 1, 5]))
    def ask(self, tenant: str, tokens: int, times: int) -> None:
        for _ in range(times):
            self.steps += 1
            self._ask(tenant, f"s{self.steps}", tokens)

    @precondition(lambda self: self.waiting)
    @rule(which=ANY, in_time=st.sampled_from([True, True, False]))
    def come_back(self, which: int, in_time: bool) -> None:
        tenant, name, tokens, at_ms = self.waiting.pop(which % len(self.waiting))
        if in_time:
            self.store.advance(max(0, at_ms - self.store.now_ms))
        self._ask(tenant, name, tokens)

    @precondition(lambda self: self.under_way)
    @rule(which=ANY, quota=QUOTAS)
    def head(self, which: int, quota: Quota | None) -> None:
        call, admitted, ticket = self.under_way[which % len(self.under_way)]
        self.store.run(limits.answered(admitted, quota=quota))
        self.model.answered(ticket, limits._told(quota), self.store.now_ms, call.tenant)

    @precondition(lambda self: self.under_way)
    @rule(
        which=ANY,
        outcome=st.sampled_from(["answered", "refused", "broken", "broken", "broken", "rate_limited", "abandoned"]),
        used=TOKENS,
        quota=QUOTAS,
        pause_s=st.sampled_from([None, 0.0, 0.05, 2.0, 20.0, 86_400.0]),
    )
    def end(self, which: int, outcome: Any, used: int, quota: Quota | None, pause_s: float | None) -> None:
        call, admitted, ticket = self.under_way.pop(which % len(self.under_way))
        settle = limits.settle(admitted, outcome=outcome, tokens=used, quota=quota, retry_after_s=pause_s)
        pause_ms = None if pause_s is None else int(pause_s * 1000)
        expected = self.model.settle(call, ticket, used, outcome, pause_ms, limits._told(quota), self.store.now_ms)
        reply = self.store.run(replace(settle, parse=list))
        assert reply == expected
        if reply:
            self.waiting.append((call.tenant, call.name, call.tokens, self.store.now_ms + reply[0]))

    @rule(ms=st.sampled_from([1, 20, 150, 700, 5_000, 31_000, 66_000, 400_000, 90_000_000]))
    def wait(self, ms: int) -> None:
        self.store.advance(ms)

    @invariant()
    def the_line_is_the_models(self) -> None:
        line = {tuple(member.decode().split()): turn for member, turn in self.store.redis.zscan_iter(self._keys[1])}
        assert line == self.model.line
        assert {member.decode() for member in self.store.redis.zrange(self._keys[2], 0, -1)} == set(map(" ".join, line))
        assert dict(self.store.redis.zscan_iter(self._keys[3])) == {
            tenant.encode(): turn for tenant, turn in self.model.turns.items()
        }

    @invariant()
    def nothing_is_kept_for_ever(self) -> None:
        for key in self.store.redis.scan_iter():
            assert self.store.redis.ttl(key) > 0
            assert any(fnmatch(key.decode(), pattern) for pattern in keys.KNOWN)

    @property
    def _keys(self) -> list[str]:
        return limits._keys(LANE, Asker("acme", ""))

    def _ask(self, tenant: str, name: str, tokens: int) -> None:
        now_ms, ticket = self.store.now_ms, object()
        call = limits.admit(LANE, asker=Asker(tenant, name), tokens=tokens, probe_lease_s=LEASE_MS / 1000)
        paused = self.model.paused_until_ms - now_ms
        expected = self.model.admit(tenant, name, tokens, ticket, LEASE_MS, now_ms)
        reply = self.store.run(replace(call, parse=list))
        assert [reply[0].decode(), *reply[1:]] == expected
        match expected:
            case ["admitted", after_ms, _, tells]:
                assert paused <= after_ms <= 200, "nobody asks in a pause"
                self.under_way.append((Ticket(tenant, name, tokens, now_ms, bool(tells)), call.parse(reply), ticket))
            case ["deferred", wait_ms, _]:
                assert wait_ms > 200
                self.waiting.append((tenant, name, tokens, now_ms + wait_ms))
            case ["broken", wait_ms, spread_ms]:
                assert wait_ms > 0
                assert spread_ms > 0
            case other:
                raise AssertionError(other)


@pytest.mark.timeout(3_600)  # the thorough profile takes its time
def test_what_is_answered_is_what_the_model_says(redis_url: str) -> None:
    AnyOrder.store = ClockedStore(redis_url)
    is_brief = settings.get_current_profile_name() == "default"
    try:
        run_state_machine_as_test(AnyOrder, settings=BRIEFLY if is_brief else settings.default)  # type: ignore[no-untyped-call]
    finally:
        AnyOrder.store.redis.flushdb()
        AnyOrder.store.close()
