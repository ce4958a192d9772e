"""Ending tasks, for sure.

Owns that a cancel is heard. Does not know what any task does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

#: A task that has not ended by then has not heard.
CANCEL_AGAIN_S = 0.2


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
