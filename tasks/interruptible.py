"""A coroutine that can be told, at its `await`, that its time is up.

Owns how an exception of ours reaches the innermost `await` of a running coroutine, and how the coroutine ended.
Knows no Celery and no pool: whoever starts one decides when to interrupt, and reads the outcome afterwards.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any

from tasks.loop_watch import LoopWatch


class Interruptible(Coroutine[Any, Any, None]):
    """Drive `body`, keep its outcome, and let `interrupt` raise inside it.

    It never raises, whatever `body` does: a SystemExit inside a task would otherwise end the loop that hundreds of
    others share. Read `error` first (None: it returned), then `value`.
    """

    def __init__(self, body: Coroutine[Any, Any, Any], *, holder: object) -> None:
        """Take `body`, not yet started; `str(holder)` names it when it holds the loop."""
        self.value: Any = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self._body = body
        self._holder = holder
        self._watch: LoopWatch | None = None
        self._interruption: asyncio.CancelledError | None = None

    def start(self, watch: LoopWatch, *, context: Context) -> asyncio.Task[None]:
        """Run on the loop that `watch` watches, from its thread, inside `context`."""
        self._watch = watch
        self.task = watch.loop.create_task(self, context=context)
        return self.task

    @property
    def runs(self) -> bool:
        """Whether the body has started and not ended."""
        return self.task is not None and not self.task.done()

    def cancel(self) -> None:
        """Ask the body to end, as asyncio does."""
        assert self.task is not None
        self.task.cancel()

    def interrupt(self, interruption: asyncio.CancelledError) -> None:
        """Raise `interruption` at the body's `await`; nothing happens to a body that has ended.

        It has to be a CancelledError, so that task groups, timeouts and `wait_for` around that `await` stop what
        they started, as they do for a cancellation.
        """
        assert self.task is not None
        if self.runs:
            self._interruption = interruption
            self.task.cancel()

    def send(self, value: Any, /) -> Any:
        if self._interruption is not None:  # what was awaited swallowed the cancellation that carried it
            return self.throw(asyncio.CancelledError())
        return self._step(self._body.send, value)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Any:
        error = typ if isinstance(typ, BaseException) else typ()
        if self._interruption is not None and isinstance(error, asyncio.CancelledError):
            error, self._interruption = self._interruption, None
            assert self.task is not None
            self.task.uncancel()  # it was the carrier of the interruption, nobody asked for a cancellation
        return self._step(self._body.throw, error)

    def close(self) -> None:
        self._body.close()

    def __await__(self) -> Any:
        raise TypeError("an Interruptible is started on a loop, not awaited")

    def _step(self, resume: Callable[[Any], Any], argument: Any) -> Any:
        assert self._watch is not None
        self._watch.holder = self._holder
        try:
            return resume(argument)
        except StopIteration as stop:
            self.value = stop.value
        except BaseException as error:
            self.error = error
        finally:
            self._watch.holder = None
        raise StopIteration
