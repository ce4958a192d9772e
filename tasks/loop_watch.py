"""The watch on an event loop: finds the code that holds it.

Owns the thread that asks the loop for a sign of life, and the report when none comes. Knows no Celery: who holds
the loop is whatever object was last put into `holder`.
"""

import asyncio
import sys
import threading
import time
import traceback
from logging import Logger

CHECKS_PER_THRESHOLD = 4
"""A hold is noticed at most a quarter of the threshold late, for 16 wake-ups a second at the default threshold."""

OVERSLEPT = 3
"""The watch itself came this many periods late: the machine or the process stood still, not the loop."""

STACK_FRAMES = 30
"""Innermost frames shown: enough to pass a client library and reach the task's own line."""


class LoopWatch:
    """Report, once per hold, that a loop ran nothing else for `threshold_s` seconds, with the stack that holds it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, threshold_s: float, logger: Logger) -> None:
        self.loop = loop
        self.holder: object | None = None
        """Who runs on the loop; None: nobody we know by name. Set by whoever runs there."""
        self.holds = 0
        self.longest_s = 0.0
        self._loop_thread_id = 0
        self._period_s = threshold_s / CHECKS_PER_THRESHOLD
        self.threshold_s = threshold_s
        self._logger = logger
        self._alive = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; call it on the loop."""
        self._loop_thread_id = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """End the watch; call it before the loop closes."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        asked_at_s = checked_at_s = time.monotonic()
        reported: str | None = None
        self.loop.call_soon_threadsafe(self._alive.set)
        while not self._stopped.wait(self._period_s):
            now_s = time.monotonic()
            overslept = now_s - checked_at_s > OVERSLEPT * self._period_s
            checked_at_s = now_s
            held_s = now_s - asked_at_s
            if self._alive.is_set():
                if reported is not None:
                    self.longest_s = max(self.longest_s, held_s)
                    self._logger.warning("%s let go of the event loop after %.2f s", reported, held_s)
                    reported = None
                self._alive.clear()
                asked_at_s = now_s
                self.loop.call_soon_threadsafe(self._alive.set)
            elif overslept:
                asked_at_s = now_s
            elif reported is None and held_s + self._period_s / 2 >= self.threshold_s:
                reported = self._report(held_s)

    def _report(self, held_s: float) -> str:
        holder = str(self.holder or "code outside of every task")
        frame = sys._current_frames().get(self._loop_thread_id)
        stack = "".join(traceback.format_stack(frame, limit=STACK_FRAMES))
        self.holds += 1
        self._logger.warning(
            "%s has held the event loop for %.2f s, and every other task of this process waits for it. Blocking "
            "code belongs in `await asyncio.to_thread(...)` or in a task that is a plain function. It is at:\n%s",
            holder,
            held_s,
            stack,
        )
        return holder
