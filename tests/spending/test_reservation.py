"""What is reserved before a call and settled after it: the budget's edges, lost replies, dead and late holders, midnight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from agent_exec import keys
from agent_exec.contract.completion import Usage
from agent_exec.contract.spending import DaySpending
from agent_exec.errors import BudgetExceeded
from agent_exec.ledger.ledger import Hold, StepRef
from agent_exec.script import Call
from agent_exec.spending.reservation import (
    Attempt,
    OverBudget,
    Reserved,
    note_limit,
    refund,
    reserve,
    settle,
    usd_micros,
)
from agent_exec.spending.usage import usage
from agent_exec.store import BlockingStore, Store
from tests.ledger.clocked import BEGIN_MS, ClockedStore
from tests.processes import Process, wait_until

DAY_MS = 86_400_000
HOLD_S = 60.0
#: 2023-11-14, 22:13:20 UTC.
TODAY = date(2023, 11, 14)


@pytest.fixture
def clocked(redis_url: str) -> Iterator[ClockedStore]:
    store = ClockedStore(redis_url)
    yield store
    store.close()


def step(name: str = "completion.1", number: int = 1, tenant_id: str = "acme") -> Attempt:
    return Attempt(tenant_id, name, number)


def asking(
    attempt: Attempt, usd: float | None = 0.4, limit: float | None = 1.0, hold_s: float = HOLD_S
) -> Call[Reserved | OverBudget]:
    return reserve(attempt, usd=usd, tokens=100, limit_usd_per_day=limit, holds_s=hold_s)


def used(usd: float | None, prompt: int = 30, completion: int = 12) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, cost_usd=usd)


def today(store: BlockingStore, tenant_id: str = "acme") -> DaySpending:
    [day] = store.run(usage(tenant_id, days=1)).days
    return day


def nothing_is_open(store: BlockingStore, tenant_id: str = "acme") -> bool:
    return not store.redis.exists(keys.spending_open(tenant_id), keys.spending_looks(tenant_id))


def test_a_call_is_reserved_then_settled_by_what_it_was(clocked: ClockedStore) -> None:
    assert clocked.run(asking(step())) == Reserved()
    held = today(clocked)
    assert (held.reserved.calls, held.reserved.tokens, held.reserved.cost_usd) == (1, 100, 0.4)
    assert held.used.calls == 0
    assert clocked.run(settle(step(), used(0.25)))
    after = today(clocked)
    assert (after.day, after.limit_usd, after.reserved.calls) == (TODAY, 1.0, 0)
    assert after.used.model_dump() == {"calls": 1, "prompt_tokens": 30, "completion_tokens": 12, "cost_usd": 0.25}
    assert after.waste.calls == 0
    assert nothing_is_open(clocked)


def test_the_budget_is_used_to_its_edge_and_no_further(clocked: ClockedStore) -> None:
    assert clocked.run(asking(step("a"), 0.4)) == Reserved()
    assert clocked.run(settle(step("a"), used(0.4)))
    assert clocked.run(asking(step("b"), 0.3)) == Reserved()
    over = clocked.run(asking(step("c"), 0.300001))
    assert isinstance(over, OverBudget)
    assert (over.spent_usd_micros, over.reserved_usd_micros, over.limit_usd_micros) == (400_000, 300_000, 1_000_000)
    assert over.may_fit_later
    assert over.resets_in_s == (DAY_MS - BEGIN_MS % DAY_MS) / 1000
    assert clocked.run(asking(step("c"), 0.3)) == Reserved()
    never = clocked.run(asking(step("d"), 0.600001))
    assert isinstance(never, OverBudget)
    assert not never.may_fit_later
    assert clocked.run(asking(step("d", tenant_id="globex"), 0.9)) == Reserved(), "each tenant has its own"


def test_the_error_says_what_is_used_up_and_what_to_do() -> None:
    over = OverBudget(400_000, 300_000, 500_000, 1_000_000, 7_200)
    error = over.error("acme")
    assert isinstance(error, BudgetExceeded)
    assert (error.code, error.retryable) == ("budget_exceeded", False)
    for word in ("'acme'", "$1 a day", "$0.4 spent", "$0.3 kept", "may cost $0.5", "2.0 h", "budget.usd_per_day"):
        assert word in str(error)


def test_without_a_limit_everything_is_counted_and_nothing_refused(clocked: ClockedStore) -> None:
    for number in range(3):
        assert clocked.run(asking(step(f"s{number}"), 9_000.0, limit=None)) == Reserved()
    assert (today(clocked).reserved.cost_usd, today(clocked).limit_usd) == (27_000.0, None)


@pytest.mark.parametrize("usd", [None, 0.0])
def test_what_has_no_price_or_is_free_is_never_refused(clocked: ClockedStore, usd: float | None) -> None:
    assert clocked.run(asking(step(), usd, limit=0.0)) == Reserved()
    assert clocked.run(settle(step(), used(usd)))
    after = today(clocked)
    assert (after.used.calls, after.used.prompt_tokens, after.used.cost_usd) == (1, 30, 0.0)
    assert after.unpriced_calls == (usd is None)
    assert isinstance(clocked.run(asking(step("b"), 0.000001, limit=0.0)), OverBudget)


def test_a_call_that_knows_no_limit_is_held_to_the_one_that_was_noted(clocked: ClockedStore) -> None:
    clocked.run(note_limit("acme", 0.5))
    assert isinstance(clocked.run(asking(step(), 0.6, limit=None)), OverBudget)
    assert clocked.run(asking(step(), 0.6, limit=1.0)) == Reserved(), "its own limit wins"
    assert today(clocked).limit_usd == 1.0
    assert clocked.run(asking(step("b", tenant_id="globex"), 0.6, limit=None)) == Reserved()
    clocked.run(note_limit("acme", None))
    assert clocked.run(asking(step("b"), 600.0, limit=None)) == Reserved()


def test_a_lost_reply_changes_nothing(clocked: ClockedStore) -> None:
    for _ in range(3):
        assert clocked.run(asking(step())) == Reserved()
    assert today(clocked).reserved.calls == 1
    assert [clocked.run(settle(step(), used(0.25))) for _ in range(3)] == [True, False, False]
    assert not clocked.run(refund(step()))
    assert today(clocked).used.calls == 1


def test_a_refund_leaves_nothing(clocked: ClockedStore) -> None:
    clocked.run(asking(step()))
    assert [clocked.run(refund(step())) for _ in range(2)] == [True, False]
    assert not clocked.run(settle(step(), used(0.25))), "it was given back"
    assert today(clocked).model_dump(exclude={"day", "limit_usd"}) == DaySpending(day=TODAY).model_dump(
        exclude={"day", "limit_usd"}
    )
    assert clocked.run(asking(step())) == Reserved(), "and the next call of the same attempt may begin"


def test_waste_is_part_of_the_whole(clocked: ClockedStore) -> None:
    clocked.run(asking(step()))
    clocked.run(settle(step(), used(0.1), waste=True))
    clocked.run(asking(step()))
    clocked.run(settle(step(), used(0.2)))
    after = today(clocked)
    assert (after.used.calls, after.used.cost_usd) == (2, 0.3)
    assert after.waste.model_dump() == {"calls": 1, "prompt_tokens": 30, "completion_tokens": 12, "cost_usd": 0.1}


def test_what_a_call_cost_beyond_its_reservation_counts(clocked: ClockedStore) -> None:
    clocked.run(asking(step(), 0.4))
    clocked.run(settle(step(), used(1.5)))
    assert today(clocked).used.cost_usd == 1.5
    assert isinstance(clocked.run(asking(step("b"), 0.1)), OverBudget)


def test_a_dead_holders_reservation_lapses_and_is_forgotten(clocked: ClockedStore) -> None:
    clocked.run(asking(step(), 0.9))
    clocked.advance(int(HOLD_S * 1000) - 1)
    assert isinstance(clocked.run(asking(step("b"), 0.2)), OverBudget)
    clocked.advance(1)
    assert clocked.run(asking(step("b"), 0.2)) == Reserved()
    after = today(clocked)
    assert (after.reserved.calls, after.reserved.cost_usd) == (1, 0.2)
    assert (after.lapsed.calls, after.lapsed.tokens, after.lapsed.cost_usd, after.used.calls) == (1, 100, 0.9, 0)
    clocked.run(refund(step("b")))
    clocked.advance(DAY_MS)
    clocked.run(usage("acme"))
    assert nothing_is_open(clocked)
    assert not clocked.run(settle(step(), used(0.5)))


def test_a_holder_that_comes_late_settles_all_the_same(clocked: ClockedStore) -> None:
    clocked.run(asking(step(), 0.9))
    clocked.advance(int(HOLD_S * 1000))
    assert today(clocked).lapsed.calls == 1
    assert [clocked.run(settle(step(), used(0.5))) for _ in range(2)] == [True, False]
    after = today(clocked)
    assert (after.lapsed.calls, after.used.cost_usd) == (0, 0.5)


def test_a_holder_that_reserves_again_after_it_lapsed_holds_again(clocked: ClockedStore) -> None:
    clocked.run(asking(step(), 0.9))
    clocked.advance(int(HOLD_S * 1000))
    assert clocked.run(asking(step(), 0.9)) == Reserved()
    after = today(clocked)
    assert (after.lapsed.calls, after.reserved.calls) == (0, 1)


def test_a_steps_next_attempt_is_not_in_its_own_way(clocked: ClockedStore) -> None:
    """A worker died with most of the budget reserved; its step is claimed again at once."""
    clocked.run(asking(step(number=3), 0.9))
    assert clocked.run(asking(step(number=5), 0.9)) == Reserved()
    after = today(clocked)
    assert (after.reserved.calls, after.lapsed.calls) == (1, 1)
    assert clocked.run(settle(step(number=5), used(0.3)))
    assert clocked.run(settle(step(number=3), used(0.1), waste=True)), "now it is known what the dead one came to"
    after = today(clocked)
    assert (after.used.cost_usd, after.waste.cost_usd, after.lapsed.calls) == (0.4, 0.1, 0)
    assert nothing_is_open(clocked)


def test_an_attempt_that_was_overtaken_stops_no_later_one(clocked: ClockedStore) -> None:
    clocked.run(asking(step(number=5), 0.4))
    assert clocked.run(asking(step(number=3), 0.4)) == Reserved()
    assert today(clocked).reserved.calls == 2


def test_a_call_over_midnight_counts_on_the_day_on_which_it_began(clocked: ClockedStore) -> None:
    clocked.run(asking(step(), 0.9, hold_s=86_400))
    clocked.advance(DAY_MS - BEGIN_MS % DAY_MS)
    assert clocked.run(asking(step("b"), 0.9)) == Reserved(), "a new day has its own budget"
    assert clocked.run(settle(step(), used(0.8)))
    first, second = clocked.run(usage("acme")).days
    assert (first.day, first.used.cost_usd, first.reserved.calls) == (TODAY, 0.8, 0)
    assert (second.used.calls, second.reserved.cost_usd) == (0, 0.9)


def test_a_hold_lasts_a_day_at_most(clocked: ClockedStore) -> None:
    clocked.run(asking(step(), hold_s=1e9))
    clocked.advance(DAY_MS)
    assert clocked.run(usage("acme")).total.lapsed.calls == 1


@pytest.mark.parametrize(
    ("usd", "micros"),
    [(0.0, 0), (0.1 + 0.2, 300_000), (1.5e-6, 2), (1e-6, 1), (0.000123, 123), (1e-12, 0), (1e308, 10**15)],
)
def test_money_is_rounded_up_to_whole_micro_dollars(usd: float, micros: int) -> None:
    assert usd_micros(usd) == micros


def test_large_sums_are_kept_in_full(clocked: ClockedStore) -> None:
    for number in range(3):
        assert clocked.run(asking(step(f"s{number}"), 99_999_999.999999, limit=1e300)) == Reserved()
        assert clocked.run(settle(step(f"s{number}"), used(99_999_999.999999, prompt=10**9)))
    after = today(clocked)
    assert after.used.cost_usd == 299_999_999.999997
    assert after.used.prompt_tokens == 3 * 10**9
    assert nothing_is_open(clocked)


def test_days_are_read_as_they_are_asked_for(clocked: ClockedStore) -> None:
    for number in range(3):
        clocked.run(asking(step(f"s{number}")))
        clocked.run(settle(step(f"s{number}"), used(0.1)))
        clocked.advance(2 * DAY_MS)
    last = clocked.run(usage("acme"))
    assert [day.day.day for day in last.days] == [14, 16, 18]
    assert (last.total.used.calls, last.total.used.cost_usd) == (3, 0.3)
    assert (last.first_day, last.last_day) == (date(2023, 10, 17), date(2023, 11, 20))
    some = clocked.run(usage("acme", first=date(2023, 11, 15), last=date(2023, 11, 18)))
    assert [day.day.day for day in some.days] == [16, 18]
    assert [day.day.day for day in clocked.run(usage("acme", days=3)).days] == [18]
    beyond = clocked.run(usage("acme", last=date(2999, 1, 1)))
    assert beyond == last, "no day is later than today"
    assert clocked.run(usage("acme", first=date(1, 1, 1), last=date(1, 1, 3))).days == []
    assert clocked.run(usage("globex")).days == []


def test_every_key_goes_by_itself(store: BlockingStore) -> None:
    store.run(asking(step()))
    store.run(asking(step("b")))
    store.run(settle(step("b"), used(0.1)))
    store.run(note_limit("acme", 5.0))
    assert 0 < store.redis.ttl(keys.spending_limit("acme")) <= 35 * 86_400
    open_s = [store.redis.ttl(key) for key in (keys.spending_open("acme"), keys.spending_looks("acme"))]
    assert all(0 < one <= 259_200 for one in open_s)
    [day] = store.redis.keys(keys.spending_day_prefix("acme") + "*")
    assert 35 * 86_400 <= store.redis.ttl(day) <= 36 * 86_400


def test_a_step_is_an_attempt_by_its_fence() -> None:
    hold = Hold(StepRef("acme", "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10", "completion.2"), 7)
    assert Attempt.of_step(hold) == Attempt("acme", "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10.completion.2", 7)


async def test_many_at_once_never_pass_the_limit(async_store: Store) -> None:
    async def call(number: int) -> bool:
        if not isinstance(await async_store.run(asking(step(f"s{number}"), 0.03)), Reserved):
            return False
        return await async_store.run(settle(step(f"s{number}"), used(0.03)))

    made = await asyncio.gather(*[call(number) for number in range(200)])
    [day] = (await async_store.run(usage("acme"))).days
    assert (sum(made), day.used.calls, day.reserved.calls) == (33, 33, 0)
    assert day.used.cost_usd == 0.99


def test_a_worker_killed_with_the_whole_budget_reserved_leaves_it_free(
    store: BlockingStore, redis_url: str, tmp_path: Path
) -> None:
    """S38."""
    worker = Process("worker", ["-m", "tests.spending.dying_worker", redis_url], env={}, log=tmp_path / "log")
    wait_until(lambda: not worker.running, what="the worker to die")
    assert isinstance(store.run(asking(step("next"), 0.5)), OverBudget), worker.output
    wait_until(lambda: store.run(asking(step("next"), 1.0)) == Reserved(), what="its reservations to lapse")
    after = today(store)
    assert (after.reserved.calls, after.lapsed.calls) == (1, 50)
    store.run(refund(step("next")))
