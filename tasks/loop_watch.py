"""The watch on an event loop: finds the code that holds it, and ends the process when it is held for too long.

Owns the thread that asks the loop for a sign of life, the report when none comes, and the hard limit: nothing in Python can
interrupt a loop that spins or blocks, so the process exits at once, and its supervisor starts another. Code that also holds
the interpreter's lock, a catastrophic regular expression say, stops this thread as well; `faulthandler`, whose timer needs
no lock, ends the process then. Knows no Celery: who holds the loop is whatever object was last put into `holder`.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from logging import Logger

CHECKS_PER_THRESHOLD = 4
"""A hold is noticed at most a quarter of the threshold late, for 16 wake-ups a second at the default threshold."""

OVERSLEPT = 3
"""The watch itself came this many periods late: the machine or the process stood still, not the loop."""

REARMS_PER_LIMIT = 4
"""How often the timer behind the hard limit is put off; it fires at most a quarter later than the limit."""

EXIT_HELD = 70
"""The exit code at the hard limit: sysexits' "internal software error". From `faulthandler`'s timer it is 1."""

STACK_FRAMES = 30
"""Innermost frames shown: enough to pass a client library and reach the task's own line."""


class LoopWatch:
    """Report, once per hold, that a loop ran nothing else for `threshold_s` seconds, with the stack that holds it.

    End the process when it was `limit_s` (0: never).
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, threshold_s: float, limit_s: float = 0.0, logger: Logger
    ) -> None:
        self.loop = loop
        self.holder: object | None = None
        """Who runs on the loop; None: nobody we know by name. Set by whoever runs there."""
        self.holds = 0
        self.longest_s = 0.0
        self._loop_thread_id = 0
        self._period_s = threshold_s / CHECKS_PER_THRESHOLD
        self.threshold_s = threshold_s
        self._limit_s = limit_s
        self._armed_at_s = float("-inf")
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
        if self._limit_s:
            faulthandler.cancel_dump_traceback_later()

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
                self._put_timer_off(now_s)
                self._alive.clear()
                asked_at_s = now_s
                self.loop.call_soon_threadsafe(self._alive.set)
            elif overslept:
                asked_at_s = now_s
            elif reported is None and held_s + self._period_s / 2 >= self.threshold_s:
                reported = self._report(held_s)
            elif self._limit_s and held_s >= self._limit_s:
                self._exit(held_s)

    def _put_timer_off(self, now_s: float) -> None:
        rearm_every_s = self._limit_s / REARMS_PER_LIMIT
        if self._limit_s and sys.__stderr__ is not None and now_s - self._armed_at_s >= rearm_every_s:
            self._armed_at_s = now_s
            # Not sys.stderr, which Celery puts a logger in place of.
            faulthandler.dump_traceback_later(self._limit_s + rearm_every_s, exit=True, file=sys.__stderr__)

    def _exit(self, held_s: float) -> None:
        self._logger.critical(
            "%s has held the event loop for %.1f s: the worker exits, to be started anew. It is at:\n%s",
            self._holder(),
            held_s,
            self._stack(),
        )
        logging.shutdown()
        os._exit(EXIT_HELD)

    def _report(self, held_s: float) -> str:
        holder = self._holder()
        self.holds += 1
        self._logger.warning(
            "%s has held the event loop for %.2f s, and every other task of this process waits for it. Blocking "
            "code belongs in `await asyncio.to_thread(...)` or in a task that is a plain function. It is at:\n%s",
            holder,
            held_s,
            self._stack(),
        )
        return holder

    def _holder(self) -> str:
        return str(self.holder or "code outside of every task")

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread_id)
        return "".join(traceback.format_stack(frame, limit=STACK_FRAMES))
