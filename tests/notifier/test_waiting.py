"""Nothing is left running behind a wait."""

from __future__ import annotations

import asyncio

import pytest

from notifier import waiting
from notifier.waiting import end, first_of, set_within


async def test_the_first_one_ends_the_others() -> None:
    others = list[str]()

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            others.append("ended")

    await first_of(asyncio.sleep(0.01), other(), other())
    assert others == ["ended", "ended"]


async def test_what_the_first_one_raises_is_raised() -> None:
    async def breaks() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await first_of(breaks(), asyncio.Event().wait())


async def test_a_cancel_that_was_swallowed_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` does on Python 3.11 where its future is done in the same moment."""
    monkeypatch.setattr(waiting, "CANCEL_AGAIN_S", 0.01)
    heard = list[int]()

    async def deaf() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.append(1)
                if len(heard) == 3:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await end([task])
    assert (task.cancelled(), len(heard)) == (True, 3)


async def test_an_error_at_the_end_stays_with_its_task() -> None:
    async def breaks() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("at the end")

    task = asyncio.create_task(breaks())
    await asyncio.sleep(0)
    await end([task])
    assert isinstance(task.exception(), ValueError)


async def test_an_event_or_a_moment() -> None:
    event = asyncio.Event()
    await set_within(event, seconds=0.001)
    event.set()
    await set_within(event, seconds=60)
