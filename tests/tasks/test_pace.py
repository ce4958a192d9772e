"""How long text is gathered, as an execution's events grow many."""

from __future__ import annotations

import pytest

from agent_exec import keys
from tasks.next_step import Defer
from tasks.pace import MAX_EVENTS, WIDENS_FROM, flush_after_s
from tasks.step import Done
from tests.tasks.conftest import Bench, returning


@pytest.mark.parametrize(("flush_ms", "first"), [(0, 0.02), (10, 0.02), (50, 0.1)])
def test_past_a_bound_text_is_gathered_twice_as_long_again_and_again(flush_ms: int, first: float) -> None:
    assert {flush_after_s(events, flush_ms=flush_ms) for events in range(WIDENS_FROM)} == {flush_ms / 1_000}
    widened = [flush_after_s(events, flush_ms=flush_ms) for events in range(WIDENS_FROM, MAX_EVENTS, 1_000)]
    assert widened == pytest.approx([first * 2**times for times in range(5)])
    assert flush_after_s(MAX_EVENTS, flush_ms=flush_ms) is None


@pytest.mark.parametrize(("events", "told"), [(MAX_EVENTS - 1, 1), (MAX_EVENTS, 0)])
async def test_at_the_cap_a_wait_is_no_event_any_more(bench: Bench, events: int, told: int) -> None:
    await bench.store.redis.hset(keys.execution("acme", bench.execution_id), "sequence", str(events))
    await bench.run("prompt", returning(Done("null", [], Defer(60, "rate_limited"))))
    assert len(await bench.logged()) == 1 + told
