"""Waiting for whichever comes first: of several coroutines, or of an event and a moment.

Owns that nothing is left running behind a wait. Does not know what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from agent_exec.ending import end


async def first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run them together until one ends; end the others; raise what the first one raised, if it did."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        await end(tasks)
    for task in ended:
        task.result()


async def set_within(event: asyncio.Event, *, seconds: float) -> None:
    """Return when the event is set, or so many seconds have passed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
