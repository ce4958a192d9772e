"""Waiting for whichever comes first: of several coroutines, or of an event and a moment.

Owns that nothing is left running behind a wait. Does not know what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

#: A task that has not ended by then has not heard.
CANCEL_AGAIN_S = 0.2


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


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when they have ended; what they raise stays with them.

    More than once, where it has to be: on Python 3.11 `asyncio.wait_for`, by which redis-py sends, may swallow a cancel.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        ended, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # looked at: else it would be told of as lost


async def set_within(event: asyncio.Event, *, seconds: float) -> None:
    """Return when the event is set, or so many seconds have passed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
