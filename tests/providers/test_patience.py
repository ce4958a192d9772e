"""The alarm that ends a wait: when it goes off, whom it wakes, and what it leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from providers.patience import Alarm

SOON_S = 0.05
NEVER_S = 30.0


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def later(pause_s: float = SOON_S) -> str:
    await asyncio.sleep(pause_s)
    return "came"


async def for_ever() -> str:
    await asyncio.Event().wait()
    return "never"


@pytest.fixture
async def alarm() -> Alarm:
    return Alarm()


async def test_what_comes_in_time_comes(alarm: Alarm) -> None:
    assert await alarm.wait(later(), until_s=now_s() + NEVER_S) == "came"


async def test_what_does_not_is_ended(alarm: Alarm) -> None:
    began_s = now_s()
    with pytest.raises(TimeoutError):
        await alarm.wait(for_ever(), until_s=began_s + SOON_S)
    assert now_s() >= began_s + SOON_S
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await alarm.wait(later(), until_s=now_s() + NEVER_S) == "came", "it can be used again"


async def test_a_limit_in_the_past_ends_a_wait_at_once(alarm: Alarm) -> None:
    with pytest.raises(TimeoutError):
        await alarm.wait(for_ever(), until_s=now_s() - 1)


async def test_a_later_limit_outlives_the_timer_of_an_earlier_one(alarm: Alarm) -> None:
    assert await alarm.wait(later(0), until_s=now_s() + SOON_S) == "came"
    assert await alarm.wait(later(4 * SOON_S), until_s=now_s() + NEVER_S) == "came"


async def test_a_later_limit_holds_after_the_timer_of_an_earlier_one(alarm: Alarm) -> None:
    await alarm.wait(later(0), until_s=now_s() + SOON_S)
    began_s = now_s()
    with pytest.raises(TimeoutError):
        await alarm.wait(for_ever(), until_s=began_s + 3 * SOON_S)
    assert now_s() >= began_s + 3 * SOON_S


async def test_an_earlier_limit_does_not_wait_for_the_timer_of_a_later_one(alarm: Alarm) -> None:
    await alarm.wait(later(0), until_s=now_s() + NEVER_S)
    async with asyncio.timeout(NEVER_S / 2):
        with pytest.raises(TimeoutError):
            await alarm.wait(for_ever(), until_s=now_s() + SOON_S)


async def test_it_wakes_nobody_between_two_waits(alarm: Alarm) -> None:
    await alarm.wait(later(0), until_s=now_s() + SOON_S)
    await asyncio.sleep(3 * SOON_S)
    assert await alarm.wait(later(0), until_s=now_s() + SOON_S) == "came"


async def test_a_cancel_is_a_cancel(alarm: Alarm) -> None:
    waiting = asyncio.create_task(alarm.wait(for_ever(), until_s=now_s() + NEVER_S))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_cancel_at_the_same_moment_has_the_last_word(alarm: Alarm) -> None:
    rung = asyncio.create_task(alarm.wait(for_ever(), until_s=now_s() + NEVER_S))
    await asyncio.sleep(0)
    alarm._at_s = now_s()
    alarm._look()
    rung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rung


async def test_an_error_that_comes_of_the_end_is_told_and_leaves_no_cancel(alarm: Alarm) -> None:
    async def stubborn() -> str:
        try:
            return await for_ever()
        except asyncio.CancelledError:
            raise OSError("closed") from None

    with pytest.raises(OSError, match="closed"):
        await alarm.wait(stubborn(), until_s=now_s() + SOON_S)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_stopped_alarm_is_silent(alarm: Alarm) -> None:
    await alarm.wait(later(0), until_s=now_s() + NEVER_S)
    alarm.stop()
    alarm.stop()
    assert alarm._timer is None
