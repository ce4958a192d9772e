"""The schedule of faults follows from the seed alone, and so does what the clients do."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from chaos.load import plan
from chaos.nemesis import DEFAULT_KINDS, KINDS, KillRedis, KillWorker, ReplaceWorker, Scheduled, schedule


def first(count: int, seed: int, *, kinds: tuple[str, ...] = DEFAULT_KINDS, calm: float = 1.0) -> list[Scheduled]:
    return list(islice(schedule(seed, kinds, workers=3, calm=calm), count))


def test_a_seed_replays_its_schedule() -> None:
    assert first(200, 7) == first(200, 7)
    assert first(200, 7) != first(200, 8)


def test_faults_come_in_order_and_of_every_kind() -> None:
    faults = first(200, 7)

    assert all(one.at_s <= following.at_s for one, following in pairwise(faults))
    assert len({type(one.fault) for one in faults}) == len(DEFAULT_KINDS)
    assert ReplaceWorker not in {type(one.fault) for one in faults}


def test_leaving_a_kind_out_moves_no_other() -> None:
    alone = first(20, 7, kinds=("kill-worker",))
    among = [one for one in first(2_000, 7) if isinstance(one.fault, KillWorker)]

    assert among[:20] == alone


@pytest.mark.parametrize(("kind", "least_s", "most_s"), [("kill-worker", 2, 7), ("kill-redis", 8, 14)])
def test_kills_keep_the_pace_that_the_promise_is_held_at(kind: str, least_s: float, most_s: float) -> None:
    moments = [one.at_s for one in first(500, 7, kinds=(kind,))]

    assert all(least_s <= later - earlier <= most_s + 0.01 for earlier, later in pairwise(moments))


def test_calm_stretches_the_times_between_faults() -> None:
    hasty, calm = first(50, 7), first(50, 7, calm=2.0)

    assert [one.fault for one in hasty] == [one.fault for one in calm]
    assert calm[-1].at_s == pytest.approx(2 * hasty[-1].at_s, abs=0.01)


def test_every_worker_is_struck_and_redis_comes_back_soon() -> None:
    faults = [one.fault for one in first(2_000, 7)]

    assert {fault.place for fault in faults if isinstance(fault, KillWorker)} == {0, 1, 2}
    assert max(fault.away_s for fault in faults if isinstance(fault, KillRedis)) < KINDS["kill-redis"].every_s[0]


def test_a_seed_replays_what_the_clients_do() -> None:
    plans = [plan(7, number, cancels=0.1) for number in range(1_000)]

    assert plans == [plan(7, number, cancels=0.1) for number in range(1_000)]
    assert {one.door for one in plans} == {"http", "client"}
    assert len({one.tenant_id for one in plans}) == 4
    assert 50 < sum(one.cancel_after_s is not None for one in plans) < 150
    assert all(
        one.mark in one.request("http://hooks").query and f"canary-{one.tenant_id}" in one.request("http://hooks").query
        for one in plans
    )
