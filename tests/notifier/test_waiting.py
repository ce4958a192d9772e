"""Nothing is left running behind a wait."""

from __future__ import annotations

import asyncio

import pytest

from notifier.waiting import first_of, set_within


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


async def test_an_event_or_a_moment() -> None:
    event = asyncio.Event()
    await set_within(event, seconds=0.001)
    event.set()
    await set_within(event, seconds=60)
