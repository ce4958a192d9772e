"""The fleet at a provider that counts: few refusals, little left unused, no tenant in another's way, one probe at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.ledger.clocked import ClockedStore
from tests.providers.played_fleet import Flood, PlayedFleet, PlayedProvider, Seen

#: The lane is learnt in this time; what is allowed is counted from then on.
LEARNT_S = 5.0


@pytest.fixture
def store(redis_url: str) -> Iterator[ClockedStore]:  # type: ignore[override]
    store = ClockedStore(redis_url)
    yield store
    store.close()


def taken_a_minute(seen: Seen, *, seconds: float, tenant: str | None = None) -> float:
    counted = [at_s for at_s, whose in seen.taken_s if at_s >= LEARNT_S and tenant in (None, whose)]
    return len(counted) * 60 / (seconds - LEARNT_S)


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"rpm": 600}, id="requests"),
        pytest.param({"tpm": 600_000}, id="tokens"),
        pytest.param({"rpm": 1_200, "tpm": 600_000, "burst_s": 4}, id="both"),
    ],
)
def test_what_is_told_is_used_and_hardly_overstepped(store: ClockedStore, limits: dict[str, float]) -> None:
    seen = PlayedFleet(store, PlayedProvider(**limits)).play([Flood("acme", 400)], seconds=30)  # type: ignore[arg-type]
    assert taken_a_minute(seen, seconds=30) >= 0.9 * 600
    assert len(seen.refused_s) <= 0.02 * len(seen.arrived_s)


def test_a_limit_that_nobody_tells_is_found_by_its_refusals(store: ClockedStore) -> None:
    provider = PlayedProvider(rpm=600, tells=False)
    seen = PlayedFleet(store, provider).play([Flood("acme", 900)], seconds=60)
    assert taken_a_minute(seen, seconds=60) >= 0.8 * 600
    assert len(seen.refused_s) <= 0.03 * len(seen.arrived_s)


def test_so_it_is_without_a_retry_after(store: ClockedStore) -> None:
    provider = PlayedProvider(rpm=600, tells=False, asks_pause=False)
    seen = PlayedFleet(store, provider).play([Flood("acme", 900)], seconds=60)
    assert taken_a_minute(seen, seconds=60) >= 0.8 * 600
    assert len(seen.refused_s) <= 0.03 * len(seen.arrived_s)


def test_nobody_asks_in_a_pause(store: ClockedStore) -> None:
    """But those who were on their way when it began."""
    provider = PlayedProvider(rpm=30, tells=False)
    seen = PlayedFleet(store, provider).play([Flood("acme", 100)], seconds=60)
    assert seen.refused_s
    for from_s, until_s in seen.paused_s:
        assert not [at_s for at_s in seen.arrived_s if from_s < at_s < until_s]


def test_a_tenant_that_asks_now_and_then_does_not_wait_for_anothers_flood(store: ClockedStore) -> None:
    floods = [Flood("flood", 600), Flood("quiet", 40, at_s=LEARNT_S, every_s=0.5)]
    seen = PlayedFleet(store, PlayedProvider(rpm=600)).play(floods, seconds=30)
    assert len(seen.waited_s["quiet"]) == 40
    assert max(seen.waited_s["quiet"]) < 1.0
    assert taken_a_minute(seen, seconds=30) >= 0.9 * 600, "and nothing is left unused for that"


def test_two_floods_share_the_lane(store: ClockedStore) -> None:
    floods = [Flood("acme", 600), Flood("globex", 150, at_s=10)]
    seen = PlayedFleet(store, PlayedProvider(rpm=600)).play(floods, seconds=30)
    both = Counter(whose for at_s, whose in seen.taken_s if at_s > 11)
    assert both["globex"] / both.total() == pytest.approx(0.5, abs=0.08)


def test_those_who_are_put_off_do_not_come_back_as_a_herd(store: ClockedStore) -> None:
    seen = PlayedFleet(store, PlayedProvider(rpm=600)).play([Flood("acme", 300)], seconds=35)
    assert len(seen.taken_s) >= 290
    assert seen.asked <= 4 * 300, "each asks, is told when, and is let through then; at first nobody knows the rate"


def test_a_broken_provider_is_asked_by_one_probe_at_a_time(store: ClockedStore) -> None:
    provider = PlayedProvider(broken_s=(2.0, 30.0))
    floods = [Flood(tenant, 200, every_s=0.2) for tenant in ("acme", "globex", "initech")]
    seen = PlayedFleet(store, provider).play(floods, seconds=60)
    opened_s = seen.failed_s[4] + 0.1
    probes = [at_s for at_s in seen.failed_s if at_s > opened_s + 0.5]
    assert 5 <= len(seen.failed_s) - len(probes) <= 15, "the failures that open it, and what was on its way then"
    assert [later - before for before, later in zip([opened_s, *probes], probes, strict=False)] == [
        pytest.approx(pause_s, abs=2.5) for pause_s in (5, 10)[: len(probes)]
    ]
    assert len(probes) == 2, "after 5 s and 10 s more; after another 20 s it is well"
    assert len(seen.taken_s) == 600, "and all is done in the end"
