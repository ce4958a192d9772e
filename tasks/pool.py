"""The asyncio worker pool of Celery: hundreds of tasks at once on one event loop.

Owns when a task starts, how many run at once, its time limits, its cancellation, and the stop of the worker. Celery's
own tracer runs unchanged, in one greenlet a task (`tasks.task`), so signals, retries, acknowledgements, callbacks,
results and events are Celery's. Knows no step and no queue.

    worker_pool = "tasks.pool:TaskPool"         # in the configuration: the default of `celery worker`
    app = Celery(..., task_cls="tasks.task:Task")

Everything about a task happens on the loop's thread; Celery itself hands acknowledgements and events over to the main
thread, which owns the broker connection. What a task body must not do is hold the loop: `tasks.loop_watch` reports it.

A cancelled task (revoked with terminate, over its hard limit, a cold shutdown) has `CANCEL_GRACE_S` to clean up. A
coroutine that goes on regardless, and the thread of a plain function, which nothing can stop, are left behind: the slot
is free, and `inspect stats` counts them. A plain function's soft limit is only logged, for the same reason. Celery's
per-child limits (`worker_max_tasks_per_child` and the like) mean nothing here: there is no child.
"""

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from billiard.einfo import ExceptionInfo
from celery import concurrency
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import _run_ready_callbacks
from celery.exceptions import WorkerLostError
from celery.signals import worker_init, worker_process_init, worker_process_shutdown
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request
from kombu.asynchronous import get_event_loop

from tasks.interruptible import Interruptible
from tasks.loop import CANCEL_GRACE_S, CLOSE_S, LoopThread
from tasks.task import SoftTimeLimit, Tracer, failure_of

PUMP_S = 0.1
"""While a stopping worker waits for its tasks, how often it does the main thread's duties: heartbeats, leases, acks."""

logger = get_logger(__name__)


class Cut(BaseException):
    """Thrown into the tracer of a task that somebody else has reported on: nothing more is to be recorded."""


class Job:
    """One task in the pool, from `apply_async` to its end. Celery holds it weakly, as the result of `apply_async`."""

    def __init__(
        self,
        pool: "TaskPool",
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[ExceptionInfo], object] | None = None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[[bool, float], object] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        **_: object,
    ) -> None:
        self._pool = pool
        self._target = target
        self._args = args
        self._kwargs = kwargs
        self._callback = callback
        self._error_callback = error_callback
        self._accept_callback = accept_callback
        self._timeout_callback = timeout_callback
        self._soft_s = soft_timeout or pool.options.get("soft_timeout")
        self._hard_s = timeout or pool.options.get("timeout")
        self._id = correlation_id
        self._timers: list[asyncio.TimerHandle] = []
        self._tracer: Tracer | None = None
        self._body: Interruptible | None = None
        self._in_thread = False
        self._cancelled = False

    def __str__(self) -> str:
        return f"{self._args[0] if self._args else self._target}[{self._id}]"

    def terminate(self, signal: int | None = None) -> None:
        """Cancel the task; Celery calls this, from the main thread, for a task that it has revoked or hands back."""
        self._pool.loop.call_soon(self.cancel)

    def revoked(self) -> bool:
        """Return whether the task was revoked, or expired, while it waited for its slot; Celery announces it then."""
        request = getattr(self._accept_callback, "__self__", None)
        return isinstance(request, Request) and bool(request.revoked())

    def start(self) -> None:
        """Run the tracer up to where it waits for the body."""
        call_later = self._pool.loop.loop.call_later
        if self._soft_s:
            self._timers.append(call_later(self._soft_s, self._on_soft_limit, self._soft_s))
        if self._hard_s:
            self._timers.append(call_later(self._hard_s, self._on_hard_limit, self._hard_s))
        self._tracer = Tracer(self._trace, loop=self._pool.loop)
        self._advance(self._tracer.switch)

    def cancel(self) -> None:
        """End the task without a word: whoever cancels it has told Celery how it ended."""
        if self._cancelled:
            return
        self._cancelled = True
        if self._body is not None:
            self._body.cancel()
            self._timers.append(self._pool.loop.loop.call_later(CANCEL_GRACE_S, self._leave_behind, self._body))
        elif self._tracer is None:
            self._pool.start_now(self)  # Celery announces the end of a task only after its start

    def _trace(self) -> None:
        try:
            if self._accept_callback:
                self._accept_callback(os.getpid(), time.monotonic())
            if self._cancelled:
                return
            outcome = self._target(*self._args, **self._kwargs)
        except Cut:
            return
        except Exception:
            self._report(self._error_callback, ExceptionInfo())
        except BaseException as error:
            try:
                raise WorkerLostError(repr(error)) from error
            except WorkerLostError:
                self._report(self._error_callback, ExceptionInfo())
        else:
            self._report(self._callback, outcome)

    def _report(self, callback: Callable[..., object] | None, *outcome: object) -> None:
        try:
            if callback:
                callback(*outcome)
        except BaseException as error:  # a SystemExit here would end the loop under all the other tasks
            logger.critical("%s: what became of it could not be reported: %r", self, error, exc_info=error)

    def _advance(self, resume: Callable[..., Any], *outcome: Any) -> None:
        """Let the tracer go on with `outcome`, and run the body that it asks for, if it asks for one."""
        assert self._tracer is not None
        loop = self._pool.loop
        loop.watch.holder = self
        wanted = resume(*outcome)
        loop.watch.holder = None
        if self._tracer.dead:
            for timer in self._timers:
                timer.cancel()
            self._pool.forget(self)
        else:
            coroutine, self._in_thread = wanted
            self._body = body = Interruptible(coroutine, holder=self)
            body.start(loop.watch, context=self._tracer.gr_context).add_done_callback(self._on_body_end)

    def _on_body_end(self, task: asyncio.Task[None]) -> None:
        assert self._tracer is not None
        if self._body is None:  # left behind, and now it has ended after all
            self._pool.loop.left_behind.discard(task)
            return
        body, self._body = self._body, None
        if self._cancelled:
            self._advance(self._tracer.throw, Cut())
        elif body.error is None:
            self._advance(self._tracer.switch, body.value)
        else:
            failure = failure_of(body.error)
            self._advance(self._tracer.throw, type(failure), failure, failure.__traceback__)

    def _leave_behind(self, body: Interruptible) -> None:
        if self._body is body:
            assert self._tracer is not None
            assert body.task is not None
            logger.warning(
                "%s goes on %.1f s after it was cancelled: left behind, its slot is free", self, CANCEL_GRACE_S
            )
            self._pool.loop.left_behind.add(body.task)
            self._body = None
            self._advance(self._tracer.throw, Cut())

    def _on_soft_limit(self, limit_s: float) -> None:
        if self._body is not None and self._body.runs and not self._cancelled:
            self._report(self._timeout_callback, True, limit_s)
            if not self._in_thread:
                self._body.interrupt(SoftTimeLimit(limit_s))

    def _on_hard_limit(self, limit_s: float) -> None:
        if self._body is not None and self._body.runs and not self._cancelled:
            self._report(self._timeout_callback, False, limit_s)
            self.cancel()


class TaskPool(BasePool):  # type: ignore[misc]  # celery ships no types
    """Runs up to `limit` tasks at once on one event loop."""

    limit: int
    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._given_up = False

    def on_start(self) -> None:
        """Start the loop and open the application's resources; what opening them raises stops the worker."""
        worker_process_init.send(sender=self._hostname)
        self.loop = LoopThread(self.app, name="tasks-loop")
        self.loop.start()
        while not self.loop.is_open(within_s=PUMP_S):
            state.maybe_shutdown()

    def on_apply(
        self, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any
    ) -> Job:
        job = Job(self, target, args, kwargs, **options)
        self.loop.call_soon(self._admit, job)
        return job

    def on_stop(self) -> None:
        """Let the running tasks finish; cancel them when Celery is in its cold shutdown."""
        self._stop(cold=bool(state.should_terminate))

    def on_terminate(self) -> None:
        """Cancel the running tasks."""
        self._stop(cold=True)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Do nothing: all tasks share a process, and Celery calls `Job.terminate` as well."""

    def grow(self, n: int = 1) -> None:
        """Allow `n` more tasks at once (autoscale, `control pool_grow`)."""
        self.limit += n
        self.loop.call_soon(self._fill)

    def shrink(self, n: int = 1) -> None:
        """Allow `n` fewer tasks at once; running ones are left in peace."""
        self.limit = max(self.limit - n, 0)

    def start_now(self, job: Job) -> None:
        """Start `job` without a slot, if it waits for one. On the loop's thread."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._running.add(job)
            job.start()

    def forget(self, job: Job) -> None:
        """Give the slot of `job`, which has ended, to the next. On the loop's thread."""
        self._running.discard(job)
        if self._waiting or self._stopping:
            self.loop.call_soon(self._fill)  # not here: jobs that end at once would end inside of each other

    def _admit(self, job: Job) -> None:
        self._waiting.append(job)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.limit and not self._stopping:
            job = self._waiting.popleft()
            if not job.revoked():
                self._running.add(job)
                job.start()
        if self._stopping and not self._running:
            self.loop.stop()

    def _stop(self, *, cold: bool) -> None:
        """Wait for the tasks, then for the loop to close.

        `worker_warm_shutdown_limit_s` bounds a warm shutdown; what runs then is cancelled, as in a cold one.
        Celery calls this again from a signal handler, while the first call waits, when a warm shutdown turns cold.
        """
        first = not self._stopping
        self.loop.call_soon(self._drain, cold)
        began_s = time.monotonic()
        patience_s = self.app.conf.get("worker_warm_shutdown_limit_s") or math.inf
        while not self.loop.join(PUMP_S) and not self._given_up:
            waited_s = time.monotonic() - began_s
            if not cold and waited_s > patience_s:
                logger.warning("tasks go on %.0f s after they were to end: they are cancelled", waited_s)
                cold, began_s = True, time.monotonic()
                self.loop.call_soon(self._drain, cold)
            elif not cold:
                _pump()
            elif waited_s > (CANCEL_GRACE_S + CLOSE_S if self._stopping else CANCEL_GRACE_S):
                logger.critical("the event loop does not end; the worker stops without it")
                self._given_up = True
        if first:
            worker_process_shutdown.send(sender=self._hostname, pid=os.getpid(), exitcode=0)

    def _drain(self, cold: bool) -> None:
        self._stopping = True
        ending = "cancelled" if cold else "waited for"
        logger.info("stopping: %d tasks %s, %d handed back unstarted", len(self._running), ending, len(self._waiting))
        self._waiting.clear()  # never acknowledged: the broker gives them to another worker
        if cold:
            for job in list(self._running):
                job.cancel()
        self._fill()

    @property
    def _hostname(self) -> str | None:
        _app, hostname = self.options.get("initargs") or (None, None)
        return hostname

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "running": len(self._running),
            "waiting": len(self._waiting),
            "left-behind": len(self.loop.left_behind),
            "loop": type(self.loop.loop).__module__.partition(".")[0],
            "loop-holds": self.loop.watch.holds,
            "longest-loop-hold-s": round(self.loop.watch.longest_s, 3),
        }


def _pump() -> None:
    """Do what the main thread's own loop, which Celery has left by now, would do: timers and acknowledgements."""
    hub: Any = get_event_loop()
    if hub is not None:  # a transport without one acknowledges where the task ends
        try:
            hub.fire_timers()
            _run_ready_callbacks(hub)
        except Exception as error:  # the broker may be away; the tasks are to finish all the same
            logger.warning("while the worker waits for its last tasks: %r", error, exc_info=error)


@worker_init.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _honour_prefork(sender: Any, **_: object) -> None:
    """Give `celery worker -P prefork` its pool.

    Celery cannot tell that from no -P at all, prefork being the option's default, and takes the configured pool for it.
    """
    command = click.get_current_context(silent=True)
    if (
        command is not None
        and command.get_parameter_source("pool") is click.core.ParameterSource.COMMANDLINE
        and sender.pool_cls is TaskPool
        and concurrency.ALIASES.get("custom") != "tasks.pool:TaskPool"  # else it may have been `-P custom`
    ):
        sender.pool_cls = "prefork"
