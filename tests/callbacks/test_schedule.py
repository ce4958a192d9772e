"""When a callback is sent again."""

from __future__ import annotations

from agent_exec.callbacks.schedule import MAX_RETRY_AFTER_S, PAUSES_S, pause_s

HOUR_S = 3_600


def test_the_schedule_is_that_of_the_specification() -> None:
    assert PAUSES_S == (5, 300, 1_800, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S, 24 * HOUR_S)
    for failed, base_s in enumerate(PAUSES_S, start=1):
        drawn = [pause for _ in range(200) if (pause := pause_s(failed)) is not None]
        assert len(drawn) == 200
        assert 0.9 * base_s <= min(drawn) < base_s < max(drawn) <= 1.1 * base_s
    assert pause_s(len(PAUSES_S) + 1) is None


def test_a_receiver_that_asks_for_a_longer_pause_gets_it_within_bounds() -> None:
    assert pause_s(1, retry_after_s=77) == 77
    assert pause_s(1, retry_after_s=10**9) == MAX_RETRY_AFTER_S
    longer = pause_s(4, retry_after_s=1)
    assert longer is not None
    assert longer > HOUR_S
    assert pause_s(len(PAUSES_S) + 1, retry_after_s=77) is None
