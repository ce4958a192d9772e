"""How long a call may take, and the alarm that ends a wait.

Owns the limits and their one timer. Does not know what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from agent_exec.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, in seconds."""

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """Return what the settings say."""
        return cls(
            connect_s=settings.provider_connect_timeout_s,
            first_token_s=settings.provider_first_token_timeout_s,
            idle_s=settings.provider_idle_timeout_s,
            total_s=settings.provider_total_timeout_s,
        )


class Alarm:
    """Ends waits, one after the other, each at a time of its own.

    Does what `asyncio.timeout_at` does, at a tenth of its price: a stream waits once a token, and its next limit is mostly
    later than the last. So the timer is left as it stands, and looks at the limit when it goes off.
    """

    def __init__(self) -> None:
        """Start without a limit, inside the running loop."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = 0.0
        self._waiting: asyncio.Task[object] | None = None
        self._rang = False

    async def wait(self, coming: Awaitable[T], *, until_s: float) -> T:
        """Return what `coming` gives; `until_s` is a time of the loop.

        Raises:
            TimeoutError: it gave nothing until then; it was cancelled.
        """
        self._at_s = until_s
        if self._timer is None or until_s < self._timer.when():
            self._set()
        task = asyncio.current_task(self._loop)
        assert task is not None
        others = task.cancelling()
        self._waiting, self._rang = task, False
        cancelled = False
        try:
            return await coming
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            self._waiting = None
            # Whoever else asked for the end has the last word.
            if self._rang and task.uncancel() <= others and cancelled:
                raise TimeoutError from None

    def stop(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        self.stop()
        self._timer = self._loop.call_at(self._at_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._at_s:
            self._set()
        else:
            self._rang = True
            self._waiting.cancel()
