"""A task that is ended has ended, also where its cancel was swallowed."""

from __future__ import annotations

import asyncio

import pytest

from agent_exec import ending
from agent_exec.ending import end


async def test_a_cancel_that_was_swallowed_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` does on Python 3.11 where its future is done in the same moment."""
    monkeypatch.setattr(ending, "CANCEL_AGAIN_S", 0.01)
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
