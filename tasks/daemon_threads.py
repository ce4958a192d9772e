"""Threads for synchronous task bodies, which a stopping process does not wait for.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so one stuck body would keep a
worker from ever stopping. Knows no Celery and no event loop.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """As many daemon threads as there are calls at once, reused; the caller bounds how many that is."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in an idle thread, or in a new one. Called from one thread alone."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Let idle threads end; a busy one ends after its call, and nobody waits for it."""
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except StopIteration as stop:  # asyncio refuses it as the outcome of a future, and would wait for ever
                    future.set_exception(RuntimeError(f"the task raised {stop!r}"))
                except BaseException as error:
                    future.set_exception(error)
            del future, call, entry
            self._idle.release()
