"""The gate's scripts, one at a time: limits that are told and learnt, the line of a lane, breakers and their probes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

import pytest

from providers import limits
from providers.limits import Admitted, Asker, Broken, Deferred, Lane, Outcome
from providers.quota import DAY_S, MINUTE_S, Allowance, Quota
from tests.ledger.clocked import ClockedStore

LANE = Lane("openai", "f00d", "gpt-4o")
PROBE_LEASE_S = 65.0
SIXTY = Quota(Allowance(60, 60, MINUTE_S), None)
BOUNDLESS = Quota(Allowance(10**9, 10**9, MINUTE_S), None)


class Bench:
    """A lane, and calls at it as workers make them."""

    def __init__(self, store: ClockedStore) -> None:
        self.store = store
        self.asked = 0

    def ask(
        self, name: str = "", *, tenant: str = "acme", tokens: int = 100, lane: Lane = LANE
    ) -> Admitted | Deferred | Broken:
        self.asked += 1
        asker = Asker(tenant, name or f"step-{self.asked}")
        return self.store.run(limits.admit(lane, asker=asker, tokens=tokens, probe_lease_s=PROBE_LEASE_S))

    def admitted(self, name: str = "", **how: Any) -> Admitted:
        said = self.ask(name, **how)
        assert isinstance(said, Admitted)
        return said

    def deferred(self, name: str = "", **how: Any) -> Deferred:
        said = self.ask(name, **how)
        assert isinstance(said, Deferred)
        return said

    def broken(self, name: str = "", **how: Any) -> Broken:
        said = self.ask(name, **how)
        assert isinstance(said, Broken)
        return said

    def told(self, quota: Quota | None, **how: Any) -> Admitted:
        """A call whose head has told this."""
        admitted = self.admitted(**how)
        self.store.run(limits.answered(admitted, quota=quota))
        return admitted

    def ended(self, admitted: Admitted, outcome: Outcome = "answered", **how: Any) -> Deferred | None:
        return self.store.run(limits.settle(admitted, outcome=outcome, **{"tokens": admitted.tokens, **how}))

    def ends(self, outcome: Outcome, times: int = 1, **how: Any) -> None:
        for _ in range(times):
            self.ended(self.admitted(**how), outcome)

    def gives_up(self, asker: Asker) -> None:
        """What its lapse does in time."""
        self.store.redis.zrem(self.line, f"{asker.tenant_id} {asker.name}")
        self.store.redis.zrem(self.lapses, f"{asker.tenant_id} {asker.name}")

    def admits(self, most: int = 500) -> int:
        """How many calls are let through at this moment. The one that is not gives its place back at once."""
        for count in range(most):
            if not isinstance(self.ask("too many"), Admitted):
                self.gives_up(Asker("acme", "too many"))
                return count
        return most

    def through(self, seconds: float) -> int:
        """How many calls of a flood are let through in that time."""
        count = 0
        for _ in range(round(seconds / 0.05)):
            self.later(0.05)
            count += self.admits()
        return count

    @property
    def line(self) -> str:
        return limits._keys(LANE, Asker("acme", ""))[1]

    @property
    def lapses(self) -> str:
        return limits._keys(LANE, Asker("acme", ""))[2]

    def later(self, seconds: float) -> None:
        self.store.advance(round(seconds * 1000))


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    store = ClockedStore(redis_url)
    yield Bench(store)
    store.close()


# What nobody knows.


def test_until_a_head_was_heard_a_lane_is_slow(bench: Bench) -> None:
    assert 8 <= bench.admits() <= 12
    bench.later(60)
    assert 8 <= bench.admits() <= 12


def test_a_lane_of_which_nothing_was_told_doubles_each_second_as_it_is_used(bench: Bench) -> None:
    bench.told(None)
    seconds = [bench.through(1.0) for _ in range(4)]
    assert all(1.5 * before < after < 2.5 * before for before, after in pairwise(seconds)), seconds


def test_nothing_known_is_no_limit(bench: Bench) -> None:
    bench.told(None)
    for _ in range(1_500):
        bench.later(0.05)
        bench.admitted()
    assert bench.admits() == 500


def test_few_calls_have_to_tell_a_head(bench: Bench) -> None:
    told = [bench.admitted().tell_head for _ in range(5)]
    assert told == [True, False, False, False, False]
    bench.later(1)
    assert bench.admitted().tell_head


# What is told.


def test_what_is_told_bounds_the_lane(bench: Bench) -> None:
    bench.told(Quota(Allowance(600, 3, MINUTE_S), None))
    assert bench.admits() == 3 + 2, (
        "what is left, and what comes within the fifth of a second that is waited for in the slot"
    )


def test_a_short_wait_is_spent_in_the_slot(bench: Bench) -> None:
    bench.told(Quota(Allowance(600, 0, MINUTE_S), None))
    assert [bench.admitted().after_s for _ in range(2)] == [0.1, 0.2]
    assert bench.deferred().wait_s == 0.3


def test_each_that_is_put_off_has_a_time_of_its_own_and_is_let_through_then(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    waits = {f"s{number}": bench.deferred(f"s{number}").wait_s for number in range(20)}
    assert list(waits.values()) == [number + 1.0 for number in range(20)]
    for name in waits:
        bench.later(1)
        bench.admitted(name)


def test_who_comes_later_does_not_go_before(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    assert bench.deferred("first").wait_s == 1.0
    bench.later(1)
    assert bench.deferred("new").wait_s == 1.0, "the second that has passed is the first one's, who is a little late"
    bench.later(0.1)
    bench.admitted("first")


def test_a_place_that_is_not_taken_up_is_given_back(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    assert bench.deferred("cancelled").wait_s == 1.0
    bench.later(1 + 30 - 0.001)
    assert bench.admits() == 30, "the second that it waited for is kept"
    bench.later(0.001)
    assert bench.admits() == 1, "and is anybody's from then on"
    assert not bench.store.redis.exists(bench.line, bench.lapses)


def test_a_lane_does_not_stand_still_for_those_who_do_not_come_back(bench: Bench) -> None:
    """A pace lets half a second's calls through at once. What more are waited for may not keep everybody else out."""
    calls = [bench.told(None), *[bench.admitted(f"s{number}") for number in range(5)]]
    for call in calls:
        bench.ended(call, "rate_limited", retry_after_s=1.0)
    bench.later(1 + 10)
    assert bench.admits()


def test_small_calls_do_not_starve_a_large_one(bench: Bench) -> None:
    bench.told(Quota(None, Allowance(60_000, 0, MINUTE_S)), tokens=100)
    wait_s = bench.deferred("large", tokens=30_000).wait_s
    assert wait_s == 30.0
    for second in range(30):
        bench.later(1)
        for number in range(3):
            assert bench.deferred(f"small-{second}-{number}", tenant="globex", tokens=100).wait_s > 0
    bench.admitted("large", tokens=30_000)


def test_a_place_is_found_by_the_name_of_who_asks(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    bench.deferred("s1")
    assert bench.deferred("s2").wait_s == 2.0
    assert bench.deferred("s1").wait_s == 1.0, "asked too early, it keeps its place"
    assert bench.deferred("s1", tenant="globex").wait_s > 1.0, "another tenant's step of that name is another"


def test_a_tenant_that_comes_to_a_long_line_does_not_wait_behind_it(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    for number in range(100):
        bench.deferred(f"flood-{number}", tenant="acme")
    assert [bench.deferred(f"s{number}", tenant="globex").wait_s for number in range(3)] == [2.0, 4.0, 6.0]
    bench.later(1)
    bench.admitted("flood-0", tenant="acme")
    bench.later(1)
    assert bench.deferred("flood-1", tenant="acme").wait_s == 1.0, "its place is one further back now"
    bench.admitted("s0", tenant="globex")


def test_a_turn_is_as_long_as_its_call(bench: Bench) -> None:
    bench.told(Quota(None, Allowance(60_000, 0, MINUTE_S)), tokens=1_000)
    for number in range(30):
        bench.deferred(f"s{number}", tenant="acme", tokens=1_000)
    for number in range(3):
        bench.deferred(f"long-{number}", tenant="globex", tokens=10_000)
    line = [member.decode().split()[0] for member in bench.store.redis.zrange(bench.line, 0, -1)]
    assert [count for tenant, group in groupby(line) if tenant == "acme" for count in [len(list(group))]] == [
        1,
        10,
        10,
        9,
    ]


def test_tokens_are_reserved_and_what_was_not_used_is_given_back(bench: Bench) -> None:
    call = bench.told(Quota(None, Allowance(60_000, 2_000, MINUTE_S)), tokens=1_000)
    taken = bench.admitted(tokens=2_000)
    assert bench.deferred("s1", tokens=1_000).wait_s == 1.0
    bench.ended(taken, tokens=500)
    bench.admitted("s1", tokens=1_000)
    bench.ended(call, tokens=4_000)
    assert bench.deferred("s2", tokens=1_000).wait_s == pytest.approx(1.0 - 0.5 + 3.0), "nor is it less than was used"


def test_a_call_that_is_larger_than_the_limit_waits_for_all_of_it(bench: Bench) -> None:
    bench.told(Quota(None, Allowance(6_000, 5_000, MINUTE_S)), tokens=100)
    assert bench.deferred("huge", tokens=100_000).wait_s == 10.0
    bench.later(10)
    huge = bench.admitted("huge", tokens=100_000)
    assert bench.deferred("next").placed
    bench.ended(huge, "refused", tokens=0)
    bench.admitted("next")


def test_requests_of_a_day_come_slowly(bench: Bench) -> None:
    bench.told(Quota(Allowance(14_400, 0, DAY_S), Allowance(18_000, 18_000, MINUTE_S)))
    assert [bench.deferred().wait_s for _ in range(3)] == [6.0, 12.0, 18.0]


def test_what_others_use_of_the_same_limits_shows(bench: Bench) -> None:
    call = bench.told(Quota(Allowance(60, 50, MINUTE_S), None))
    bench.store.run(limits.answered(call, quota=Quota(Allowance(60, 2, MINUTE_S), None)))
    assert bench.admits() == 2
    bench.store.run(limits.answered(call, quota=SIXTY))
    assert bench.admits() == 0, "but what is told corrects no level upwards: it does not know of calls on their way"


def test_a_limit_that_changes_holds_at_once(bench: Bench) -> None:
    call = bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    assert bench.deferred("s1").wait_s == 1.0
    bench.store.run(limits.answered(call, quota=Quota(Allowance(6_000, 0, MINUTE_S), None)))
    assert bench.admitted("s1").after_s == 0.01


def test_a_limit_that_is_not_told_again_for_a_day_is_none(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    bench.later(DAY_S + 1)
    assert bench.admits() == 500


def test_a_worker_that_dies_costs_what_its_call_may_have_used(bench: Bench) -> None:
    bench.told(SIXTY)
    assert bench.admits() == 60
    bench.later(60)  # none of them is heard of again
    assert bench.admits() == 60


def test_lanes_are_apart(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    bench.deferred()
    for other in (Lane("groq", "f00d", "gpt-4o"), Lane("openai", "cafe", "gpt-4o"), Lane("openai", "f00d", "mini")):
        bench.admitted(lane=other)


def test_who_is_let_through_in_one_lane_waits_in_no_other(bench: Bench) -> None:
    """A step that fell back to another model is not waited for: else the first one stood still for those who left it."""
    bench.told(Quota(None, Allowance(60_000, 0, MINUTE_S)), tokens=1_000)
    for number in range(8):
        bench.deferred(f"s{number}", tokens=1_000)
        bench.admitted(f"s{number}", tokens=1_000, lane=Lane("groq", "cafe", "llama"))
    assert not bench.store.redis.exists(bench.line, bench.lapses)
    assert bench.deferred("new", tokens=1_000).wait_s == 1.0
    assert list(bench.store.redis.scan_iter("ax:lane_places:*")) == [b"ax:lane_places:acme:new"]


def test_the_longest_waits_are_spread_and_keep_their_places(bench: Bench) -> None:
    bench.told(Quota(Allowance(60, 0, MINUTE_S), None))
    for number in range(300):
        bench.deferred(f"s{number}")
    far = [bench.deferred(f"far-{number}") for number in range(20)]
    assert all(150 <= one.wait_s <= 300 and one.placed for one in far)
    assert len({one.wait_s for one in far}) == 20


def test_a_line_is_bounded_for_each_tenant(bench: Bench) -> None:
    bench.told(Quota(None, Allowance(60_000, 0, MINUTE_S)), tokens=1)
    bench.deferred("ten thousand calls in one", tokens=10_001)
    beyond = [bench.deferred(f"s{number}", tokens=1_000) for number in range(5)]
    assert not any(one.placed for one in beyond)
    assert len({one.wait_s for one in beyond}) == 5, "they are spread"
    assert bench.deferred(tenant="globex", tokens=1_000).placed


# Refusals.


def test_a_refusal_pauses_the_lane_for_everybody(bench: Bench) -> None:
    first, other = bench.told(SIXTY), bench.admitted(tenant="globex")
    back = bench.ended(first, "rate_limited", retry_after_s=20.0)
    assert back is not None
    assert back.placed
    assert back.wait_s >= 20.0
    assert bench.deferred("s1", tenant="globex").wait_s > 20.0
    bench.ended(other, "rate_limited", retry_after_s=5.0)
    assert bench.deferred("s2").wait_s > 20.0, "the longest holds"


def test_who_was_refused_comes_back_to_a_place(bench: Bench) -> None:
    bench.told(SIXTY)
    calls = [bench.admitted(f"s{number}") for number in range(10)]
    waits = []
    for call in calls:
        used_up = Quota(Allowance(60, 0, MINUTE_S), None)
        back = bench.ended(call, "rate_limited", retry_after_s=2.0, quota=used_up)
        assert back is not None
        waits.append(back.wait_s)
    assert len(set(waits)) == 10, "no herd when the pause is over"
    waited_s = 0.0
    for wait_s, call in sorted(zip(waits, calls, strict=True), key=lambda one: one[0]):
        bench.later(wait_s - waited_s)
        waited_s = wait_s
        bench.admitted(call.asker.name)


def test_a_refusal_without_a_pause_gets_a_second(bench: Bench) -> None:
    call = bench.told(Quota(Allowance(6_000, 6_000, MINUTE_S), None))
    bench.ended(call, "rate_limited")
    assert bench.deferred().wait_s > 1.0


def test_no_answer_silences_the_fleet_for_longer_than_an_hour(bench: Bench) -> None:
    bench.ended(bench.told(SIXTY), "rate_limited", retry_after_s=DAY_S)
    bench.later(3_599)
    assert isinstance(bench.ask("s1"), Deferred)
    bench.later(61)
    bench.admitted("s1")


def test_a_refusal_that_nothing_explains_halves_what_was_let_through(bench: Bench) -> None:
    bench.told(Quota(Allowance(60_000, 60_000, MINUTE_S), None))
    calls = []
    for _ in range(40):
        bench.later(0.05)
        calls.append(bench.admitted())
    for call in calls[-10:]:
        bench.ended(call, "rate_limited", retry_after_s=1.0)
    bench.later(1)
    for call in calls[-10:]:
        bench.gives_up(call.asker)
    assert bench.through(1.0) == pytest.approx(12, abs=4), "twenty a second were too many; and ten refusals halve once"
    assert bench.through(10.0) == pytest.approx(175, rel=0.15), "it comes back to what was refused"
    assert bench.through(60.0) > 1_300, "and goes beyond, in search of the limit"


def test_a_refusal_that_what_was_told_explains_halves_nothing(bench: Bench) -> None:
    call = bench.told(Quota(Allowance(600, 300, MINUTE_S), None))
    bench.ended(call, "rate_limited", retry_after_s=1.0, quota=Quota(Allowance(600, 0, MINUTE_S), None))
    bench.later(1)
    assert bench.through(2.0) == pytest.approx(20, abs=3)


def test_a_pace_is_forgotten_when_it_bounds_nothing(bench: Bench) -> None:
    bench.ended(bench.told(None), "rate_limited")
    bench.later(1)
    assert bench.admits() < 3
    bench.later(180)
    assert bench.admits() == 500


# Breakers.


def test_five_failures_stop_the_tenant_they_are_of(bench: Bench) -> None:
    bench.ends("broken", 4)
    bench.admitted()
    bench.ends("broken")
    stopped = bench.broken()
    assert 5.0 <= stopped.wait_s <= 10.0
    bench.admitted(tenant="globex")
    assert isinstance(bench.ask(lane=Lane("openai", "another key", "gpt-4o")), Broken), "it is the endpoint that fails"
    bench.admitted(lane=Lane("openai", "f00d", "another model"))


def test_failures_of_more_than_one_tenant_stop_everybody(bench: Bench) -> None:
    bench.ends("broken", 4, tenant="acme")
    bench.ends("broken", 1, tenant="globex")
    for tenant in ("acme", "globex", "initech"):
        bench.broken(tenant=tenant)


def test_one_tenants_failures_do_not_stop_those_who_get_answers(bench: Bench) -> None:
    bench.told(BOUNDLESS)
    bench.ends("broken", 4, tenant="acme")
    bench.ends("answered", 3, tenant="globex")
    bench.ends("broken", 1, tenant="globex")
    bench.ends("answered", 1, tenant="initech")
    bench.ends("broken", 1, tenant="acme")
    bench.broken(tenant="acme")
    for tenant in ("globex", "initech"):
        bench.admitted(tenant=tenant)


def test_half_of_the_tenants_are_not_everybody(bench: Bench) -> None:
    bench.ends("broken", 3, tenant="acme")
    bench.ends("answered", tenant="initech")
    bench.ends("answered", tenant="umbrella")
    bench.ends("broken", 3, tenant="globex")
    bench.admitted(tenant="acme")
    bench.ends("broken", tenant="initech")
    bench.broken(tenant="acme")


def test_fewer_failures_than_answers_stop_nobody(bench: Bench) -> None:
    bench.told(BOUNDLESS)
    bench.ends("broken")
    for _ in range(20):
        bench.ends("answered", 2)
        bench.ends("broken")
    bench.admitted()


@pytest.mark.parametrize("outcome", ["answered", "refused", "abandoned"])
def test_what_is_not_the_endpoints_fault_does_not_count(bench: Bench, outcome: Outcome) -> None:
    for _ in range(10):
        bench.ends(outcome)
        bench.later(1)
    bench.admitted()


def test_refusals_as_one_too_many_do_not_count(bench: Bench) -> None:
    for _ in range(10):
        bench.ended(bench.admitted(), "rate_limited")
        bench.later(60)
    bench.admitted()


def test_failures_long_ago_do_not_count(bench: Bench) -> None:
    bench.ends("broken", 4)
    bench.later(30)
    bench.ends("broken", 4)
    bench.admitted()


def opened(bench: Bench) -> None:
    bench.ends("broken", 3, tenant="acme")
    bench.ends("broken", 2, tenant="globex")


def test_half_open_one_call_of_the_fleet_tries(bench: Bench) -> None:
    opened(bench)
    bench.later(4.999)
    assert isinstance(bench.ask(), Broken)
    bench.later(0.001)
    probe = bench.admitted()
    assert probe.tell_head
    for tenant in ("acme", "globex", "initech"):
        assert 2.0 <= bench.broken(tenant=tenant).wait_s <= 4.0


def test_the_head_of_the_probes_answer_closes_it(bench: Bench) -> None:
    opened(bench)
    bench.later(5)
    bench.told(None)
    bench.admitted()
    bench.admitted(tenant="globex")


@pytest.mark.parametrize("outcome", ["answered", "refused", "rate_limited"])
def test_whatever_shows_that_the_provider_lives_closes_it(bench: Bench, outcome: Outcome) -> None:
    opened(bench)
    bench.later(5)
    bench.ends(outcome)
    assert not any(isinstance(bench.ask(), Broken) for _ in range(3))


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_minute(bench: Bench) -> None:
    opened(bench)
    for open_s in (5, 10, 20, 40, 60, 60):
        bench.later(open_s - 0.001)
        assert isinstance(bench.ask(), Broken)
        bench.later(0.001)
        bench.ends("broken")


def test_a_probe_whose_worker_dies_is_given_back(bench: Bench) -> None:
    opened(bench)
    bench.later(5)
    dead = bench.admitted()
    bench.later(PROBE_LEASE_S - 0.001)
    bench.broken()
    bench.later(0.001)
    alive = bench.admitted()
    bench.broken()
    bench.ended(dead, "broken")
    bench.ended(alive, "answered")
    bench.admitted()


def test_a_probe_that_is_cancelled_lets_the_next_one_try(bench: Bench) -> None:
    opened(bench)
    bench.later(5)
    bench.ends("abandoned")
    bench.admitted()
    bench.broken()


def test_a_call_that_began_before_it_opened_says_nothing(bench: Bench) -> None:
    early = [bench.admitted() for _ in range(4)]
    opened(bench)
    bench.ended(early[0], "answered")
    bench.broken()
    for call in early[1:]:
        bench.ended(call, "broken")
    bench.later(5)
    bench.admitted()


def test_who_is_stopped_keeps_its_place_in_the_line(bench: Bench) -> None:
    calls = [bench.told(Quota(Allowance(60, 6, MINUTE_S), None))]
    calls += [bench.admitted(tenant=tenant) for tenant in ("acme", "globex", "globex", "globex")]
    bench.admits()
    bench.deferred("first")
    for call in calls:
        bench.ended(call, "broken")
    bench.later(1)
    for _ in range(3):
        bench.broken(name="first")
        bench.later(20)
        bench.ends("broken", name="probe")
    assert b"acme first" in bench.store.redis.zrange(bench.line, 0, -1)


def test_a_lane_is_not_charged_for_a_call_that_a_breaker_stops(bench: Bench) -> None:
    bench.told(SIXTY)
    opened(bench)
    for _ in range(100):
        bench.broken()
    bench.later(5)
    bench.told(None)
    assert bench.admits() >= 54


def test_an_answer_that_is_none_of_the_scripts_is_an_error() -> None:
    call = limits.admit(LANE, asker=Asker("acme", "s"), tokens=1, probe_lease_s=1)
    with pytest.raises(ValueError, match="admit"):
        call.parse([b"what"])
