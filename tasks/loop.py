"""The one long-lived event loop of a process, in a thread of its own, and what is open on it.

Owns the loop's thread, its start and its end, and the resources that the application opens on it. Knows Celery's
configuration, and neither tasks nor pools.

Three settings, beside Celery's own: `worker_lifespan`, a function (or its name, "module:function") that takes the
application and returns an async context manager, entered on the loop before the first task and left after the last;
`worker_loop_held_warning_s`, after how many seconds a held loop is reported (0: it is not watched at all); and
`worker_loop_hard_limit_s`, after how many it ends the process (0, the default: never).
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown
from celery.utils.log import get_logger
from kombu.utils.imports import symbol_by_name

from tasks.daemon_threads import DaemonThreads
from tasks.loop_watch import LoopWatch

try:
    from uvloop import new_event_loop
except ImportError:  # it has no build for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]  # both make a loop

LOOP_HELD_WARNING_S = 0.25
"""Half the time after which a token stream visibly stutters, and far above what any step needs of the processor."""

CANCEL_GRACE_S = 5.0
"""How long a cancelled coroutine may take to clean up before it is left behind: a TLS close with a slow peer."""

CLOSE_S = 10.0
"""How long the resources may take to close before a stopping process goes on without them."""

logger = get_logger(__name__)

_resources: ContextVar[Any] = ContextVar("resources")


def resources() -> Any:
    """Return what the application's lifespan yielded on the loop that runs this task.

    Raises:
        RuntimeError: called outside of a task, or the application has no `worker_lifespan`.
    """
    try:
        return _resources.get()
    except LookupError:
        raise RuntimeError(
            "no resources here: they exist inside of a task, when the setting worker_lifespan names what opens them"
        ) from None


class LoopThread:
    """An event loop in a daemon thread, with the application's resources open on it from `start` to `stop`."""

    def __init__(self, app: Celery, *, name: str) -> None:
        self.app = app
        self.loop: asyncio.AbstractEventLoop = new_event_loop()
        self.threads = DaemonThreads(name=f"{name}-sync")
        self.left_behind: set[object] = set()
        """What ignored its cancellation and still runs: tasks, and calls in threads."""
        self.watch = LoopWatch(
            self.loop,
            threshold_s=app.conf.get("worker_loop_held_warning_s", LOOP_HELD_WARNING_S),
            limit_s=app.conf.get("worker_loop_hard_limit_s", 0.0),
            logger=logger,
        )
        self._context = Context()
        self._stopping = asyncio.Event()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which opens the resources; `is_open` tells when it has."""
        self._thread.start()

    def is_open(self, *, within_s: float | None = None) -> bool:
        """Wait at most `within_s` (None: as long as it takes) and return whether the resources are open.

        Raises whatever opening them raised; the thread has ended then.
        """
        try:
            self._opened.result(within_s)
        except TimeoutError:
            if self._opened.done():
                raise
        return self._opened.done()

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Have the loop call `callback(*args)`; from any thread, and from a signal handler. Too late is no error."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(callback, *args)

    def context(self) -> Context:
        """Return a new context in which the resources can be reached."""
        return self._context.run(copy_context)

    def open_in(self, context: Context) -> None:
        """Make the resources reachable in `context`."""
        if _resources in self._context:
            context.run(_resources.set, self._context[_resources])

    async def in_thread(self, call: Callable[[], Any]) -> Any:
        """Run `call` in a thread, within the context of the caller; a coroutine that it returns runs here."""
        running = self.threads.submit(copy_context().run, call)
        try:
            outcome = await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if not running.done():
                self.left_behind.add(running)
                running.add_done_callback(lambda call: self.call_soon(self.left_behind.discard, call))
            raise
        return await outcome if asyncio.iscoroutine(outcome) else outcome

    def stop(self) -> None:
        """Ask the loop to close its resources and to end; wait with `join`."""
        self.call_soon(self._stopping.set)

    def join(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for the thread to end; return whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        main = loop.create_task(self._serve(), name="lifespan")
        while not main.done():
            try:
                loop.run_until_complete(main)
            except BaseException as error:
                if main.done():
                    self._report(error)
                else:  # SystemExit of a background task, say: the others are not to blame
                    logger.critical("the event loop was left with %r; it goes on", error, exc_info=error)
        try:
            loop.run_until_complete(self._cancel_the_rest())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self.threads.shutdown()
            asyncio.set_event_loop(None)
            loop.close()

    def _report(self, error: BaseException) -> None:
        if self._opened.done():
            logger.error("closing the resources of the event loop failed: %r", error, exc_info=error)
        else:
            self._opened.set_exception(error)

    async def _serve(self) -> None:
        lifespan = self.app.conf.get("worker_lifespan")
        async with contextlib.AsyncExitStack() as stack:
            if lifespan is not None:
                opening = symbol_by_name(lifespan)(self.app)  # type: ignore[no-untyped-call]  # kombu's own
                _resources.set(await stack.enter_async_context(opening))
            self._context = copy_context()
            if self.watch.threshold_s > 0:
                self.watch.start()
                stack.callback(self.watch.stop)
            self._opened.set_result(None)
            await self._stopping.wait()

    async def _cancel_the_rest(self) -> None:
        rest = asyncio.all_tasks() - self.left_behind - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            _, deaf = await asyncio.wait(rest, timeout=CANCEL_GRACE_S)
            for task in deaf:
                logger.warning("left behind, because it ignores its cancellation: %r", task)


class _LoopOfProcess:
    """The loop that tasks share in a process whose pool is not ours: threads, prefork, solo, or no worker at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops: dict[tuple[int, int], LoopThread] = {}

    def get(self, app: Celery) -> LoopThread:
        with self._lock:
            key = os.getpid(), id(app)
            if key not in self._loops:
                loop = LoopThread(app, name="tasks-loop")
                loop.start()
                loop.is_open()
                self._loops[key] = loop
            return self._loops[key]

    def close(self, **_: object) -> None:
        for (pid, _app), loop in list(self._loops.items()):
            if pid == os.getpid():  # a forked child inherits the entries of its parent, and no thread behind them
                loop.stop()
                loop.join(CLOSE_S)
        self._loops.clear()


_loop_of_process = _LoopOfProcess()
loop_of_process = _loop_of_process.get
atexit.register(_loop_of_process.close)
worker_process_shutdown.connect(_loop_of_process.close)  # a prefork child leaves without its atexit functions
