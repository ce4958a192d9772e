"""The base class of the application's tasks: what makes `async def` a task, on every pool.

Owns the bridge from Celery's tracer, which is synchronous, to a coroutine, and Celery's notion of the current task
inside of one. Knows nothing of how the asyncio pool starts, limits and stops tasks: there the tracer runs in a
`Tracer`, and this module hands it what the tracer has to wait for.

On the asyncio pool an `async def` body runs on the loop and a plain one in a thread. On the pools threads, prefork and
solo a plain body runs where Celery calls it, and an `async def` body on one loop per process while Celery's thread
waits. Called directly, as a function, an `async def` task returns its coroutine.
"""

import functools
import inspect
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as TaskCancelled
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from typing import Any

from celery import _state
from celery.app.task import Task as CeleryTask
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.threads import get_ident
from greenlet import getcurrent, greenlet

from tasks.interruptible import Interruptible
from tasks.loop import LoopThread, loop_of_process, resources

_key: ContextVar[object] = ContextVar("key")
"""What Celery's stacks of current tasks are keyed with. Their own key is the greenlet, and coroutines share theirs."""


class SoftTimeLimit(SoftTimeLimitExceeded, CancelledError):  # type: ignore[misc]  # celery ships no types
    """Celery's SoftTimeLimitExceeded, as it is raised at an `await`.

    Task groups and timeouts around that `await` stop what they started only for a CancelledError.
    """


class Tracer(greenlet):  # type: ignore[misc]  # greenlet ships no types
    """A greenlet that runs Celery's tracer, and sleeps while the loop runs the body of the task."""

    def __init__(self, run: Callable[[], None], *, loop: LoopThread) -> None:
        super().__init__(run)
        self.loop = loop
        self.gr_context = loop.context()
        self.gr_context.run(_key.set, object())

    def wait_for(self, body: Coroutine[Any, Any, Any], *, in_thread: bool) -> Any:
        """Called inside: sleep until the pool has run `body`; return its value or raise its error."""
        return self.parent.switch((body, in_thread))


class Task(CeleryTask):  # type: ignore[misc]  # celery ships no types
    """Celery's task, whose body may be `async def`: `Celery(..., task_cls="tasks.task:Task")`."""

    abstract = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        body = cls.__dict__.get("run")
        if body is not None:
            cls.run = _bridged(body)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Key this task's stack of requests with the tracer that a coroutine belongs to."""
        super().on_bound(app)
        cls.request_stack.__ident_func__ = _ident

    @property
    def resources(self) -> Any:
        """What the application's lifespan yielded; see `tasks.loop.resources`."""
        return resources()


def failure_of(error: BaseException) -> BaseException:
    """Return the exception that the tracer is to see for the `error` that ended a coroutine.

    A cancellation that nobody ordered (something awaited was cancelled) is an ordinary failure: the tracer records
    Exceptions alone.
    """
    match error:
        case SoftTimeLimit():
            limit: BaseException = SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__)
            return limit
        case CancelledError():
            failure = TaskCancelled(f"the task was cancelled from within: {error}").with_traceback(error.__traceback__)
            failure.__cause__ = error
            return failure
        case _:
            return error


def _ident() -> object:
    return _key.get(None) or get_ident()


_state._task_stack.__ident_func__ = _ident


def _bridged(body: Any) -> Callable[..., Any]:
    """Return `run` for a task class, a function of the task and the arguments, from what the class was given."""
    bound = not isinstance(body, staticmethod)
    function = body if bound else body.__func__
    is_async = inspect.iscoroutinefunction(function)

    @functools.wraps(function)
    def run(task: Task, /, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(function, *((task, *args) if bound else args), **kwargs)
        request = task.request_stack.top
        if request is None or request.called_directly or getattr(request, "body_started", False):
            return call()
        request.body_started = True  # from here on, a call of the task is a call of a function
        tracer = getcurrent()
        if isinstance(tracer, Tracer):
            return tracer.wait_for(call() if is_async else tracer.loop.in_thread(call), in_thread=not is_async)
        outcome = call()
        return _run_on_loop_of_process(task, outcome) if inspect.iscoroutine(outcome) else outcome

    return run


def _run_on_loop_of_process(task: Task, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Wait in this thread for `coroutine`, which runs on the loop of this process.

    What interrupts this thread meanwhile reaches the coroutine: prefork's soft time limit as itself, all else as a
    cancellation.
    """
    loop = loop_of_process(task.app)
    body = Interruptible(coroutine, holder=f"{task.name}[{task.request.id}]")
    context = copy_context()
    context.run(_key.set, _ident())
    loop.open_in(context)
    ended: Future[None] = Future()

    def start() -> None:
        body.start(loop.watch, context=context).add_done_callback(lambda _: ended.set_result(None))

    loop.call_soon(start)
    while not ended.done():
        try:
            ended.result()
        except SoftTimeLimitExceeded as limit:
            loop.call_soon(body.interrupt, SoftTimeLimit(*limit.args))
        except BaseException:
            loop.call_soon(body.cancel)
            raise
    if body.error is not None:
        raise failure_of(body.error)
    return body.value
