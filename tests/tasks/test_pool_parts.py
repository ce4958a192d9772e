"""The parts of the asyncio pool by themselves, where a worker would hide the corner."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any

import pytest
from celery import Celery

from tasks.daemon_threads import DaemonThreads
from tasks.interruptible import Interruptible
from tasks.loop import LoopThread, resources
from tasks.loop_watch import EXIT_HELD, LoopWatch
from tasks.pool import TaskPool
from tests.tasks.pool_worker import eventually

LOGGER = logging.getLogger("tests.tasks.pool_parts")
THRESHOLD_S = 0.2


class Interruption(asyncio.CancelledError):
    """What the tests raise at an await."""


Started = Callable[[Coroutine[Any, Any, Any]], Interruptible]


@pytest.fixture
async def started() -> Started:
    """Start a coroutine as an Interruptible on the test's loop."""
    watch = LoopWatch(asyncio.get_running_loop(), threshold_s=THRESHOLD_S, logger=LOGGER)

    def start(body: Coroutine[Any, Any, Any]) -> Interruptible:
        interruptible = Interruptible(body, holder="body")
        interruptible.start(watch, context=copy_context())
        return interruptible

    return start


class TestInterruptible:
    async def test_it_keeps_the_value(self, started: Started) -> None:
        async def body() -> int:
            await asyncio.sleep(0)
            return 3

        interruptible = started(body())
        assert interruptible.runs
        assert interruptible.task is not None
        await interruptible.task
        assert (interruptible.value, interruptible.error, interruptible.runs) == (3, None, False)

    @pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
    async def test_it_keeps_every_error(self, started: Started, error: BaseException) -> None:
        async def body() -> None:
            raise error

        interruptible = started(body())
        assert interruptible.task is not None
        await interruptible.task
        assert interruptible.error is error

    async def test_an_interruption_leaves_no_cancellation_behind(self, started: Started) -> None:
        async def body() -> int:
            task = asyncio.current_task()
            assert task is not None
            try:
                await asyncio.sleep(30)
            except Interruption:
                return task.cancelling()
            return -1

        interruptible = started(body())
        await asyncio.sleep(0)
        interruptible.interrupt(Interruption())
        assert interruptible.task is not None
        await interruptible.task
        assert interruptible.value == 0

    async def test_an_interruption_survives_an_await_that_swallows_it(self, started: Started) -> None:
        async def deaf() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)

        async def body() -> str:
            try:
                await asyncio.create_task(deaf())
            except Interruption:
                return "told"
            return "never told"

        interruptible = started(body())
        await asyncio.sleep(0.01)
        interruptible.interrupt(Interruption())
        assert interruptible.task is not None
        await interruptible.task
        assert interruptible.value == "told"

    async def test_an_interruption_after_the_end_is_nothing(self, started: Started) -> None:
        interruptible = started(asyncio.sleep(0, "value"))
        assert interruptible.task is not None
        await interruptible.task
        interruptible.interrupt(Interruption())
        assert (interruptible.value, interruptible.error) == ("value", None)

    async def test_it_is_not_awaited(self) -> None:
        interruptible = Interruptible(asyncio.sleep(0), holder="body")
        with pytest.raises(TypeError, match="started on a loop"):
            await interruptible
        interruptible.close()


class TestLoopWatch:
    @pytest.fixture
    async def watch(self) -> AsyncIterator[LoopWatch]:
        watch = LoopWatch(asyncio.get_running_loop(), threshold_s=THRESHOLD_S, logger=LOGGER)
        watch.start()
        await asyncio.sleep(THRESHOLD_S)
        yield watch
        watch.stop()

    async def test_a_short_hold_is_fine(self, watch: LoopWatch, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(20):
            time.sleep(THRESHOLD_S / 5)  # noqa: ASYNC251  # a hold is what is tested
            await asyncio.sleep(0)
        assert caplog.text == ""

    async def test_a_hold_outside_of_a_task_is_reported_once(
        self, watch: LoopWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        time.sleep(THRESHOLD_S * 5)  # noqa: ASYNC251  # a hold is what is tested
        await asyncio.to_thread(eventually, lambda: "let go" in caplog.text)
        assert caplog.text.count("code outside of every task has held the event loop") == 1
        assert watch.holds == 1
        assert watch.longest_s >= THRESHOLD_S * 5 - THRESHOLD_S / 2

    async def test_a_machine_that_stood_still_is_no_hold(
        self, watch: LoopWatch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = time.monotonic
        asked = threading.Event()

        def jumped() -> float:
            asked.set()
            return real() + 100

        monkeypatch.setattr("tasks.loop_watch.time.monotonic", jumped)
        while not asked.is_set():  # as after SIGCONT: the watch is the first to look at the clock
            time.sleep(0.001)  # noqa: ASYNC251
        await asyncio.sleep(THRESHOLD_S * 2)
        assert caplog.text == ""

    async def test_a_hold_over_the_hard_limit_ends_the_process(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = threading.Event()

        def end(code: int) -> None:
            assert code == EXIT_HELD
            ended.set()

        monkeypatch.setattr("tasks.loop_watch.os._exit", end)
        monkeypatch.setattr("tasks.loop_watch.logging.shutdown", lambda: None)
        armed: list[float] = []
        monkeypatch.setattr(
            "tasks.loop_watch.faulthandler.dump_traceback_later", lambda after_s, **_: armed.append(after_s)
        )
        loop = asyncio.get_running_loop()
        watch = LoopWatch(loop, threshold_s=THRESHOLD_S, limit_s=THRESHOLD_S * 20, logger=LOGGER)
        watch.start()
        await asyncio.sleep(THRESHOLD_S)
        eventually(ended.is_set)  # holds the loop
        watch.stop()
        assert armed[0] == pytest.approx(THRESHOLD_S * 25), "behind it, for code that leaves no thread a turn"
        assert "test_a_hold_over_the_hard_limit_ends_the_process" in caplog.text


class TestDaemonThreads:
    @pytest.fixture
    def threads(self) -> Iterator[DaemonThreads]:
        threads = DaemonThreads(name="test")
        yield threads
        threads.shutdown()

    def test_a_thread_is_used_again(self, threads: DaemonThreads) -> None:
        first = threads.submit(threading.get_ident).result()
        eventually(lambda: threads.submit(threading.get_ident).result() == first)

    def test_a_stop_iteration_is_an_error_like_others(self, threads: DaemonThreads) -> None:
        def stops() -> None:
            raise StopIteration(3)

        with pytest.raises(RuntimeError, match=r"StopIteration\(3\)"):
            threads.submit(stops).result()


class TestLoopThread:
    @pytest.fixture
    def app(self) -> Celery:
        return Celery("parts", set_as_current=False)

    def run(self, loop: LoopThread, body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(body(), loop.loop).result(10)

    def test_there_are_no_resources_without_a_lifespan(self) -> None:
        with pytest.raises(RuntimeError, match="worker_lifespan"):
            resources()

    def test_a_background_task_that_exits_does_not_end_the_loop(
        self, app: Celery, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop = LoopThread(app, name="test")
        loop.start()

        async def exits() -> None:
            raise SystemExit(3)

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(exits())

        task = self.run(loop, begin)
        eventually(task.done)
        assert isinstance(task.exception(), SystemExit)

        async def alive() -> str:
            return "alive"

        assert self.run(loop, alive) == "alive"
        loop.stop()
        assert loop.join(10)
        assert "the event loop was left with SystemExit(3)" in caplog.text

    def test_resources_that_do_not_close_are_logged(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        @asynccontextmanager
        async def lifespan(_: Celery) -> AsyncIterator[str]:
            yield "resource"
            raise LookupError("no way to close")

        app.conf.worker_lifespan = lifespan
        loop = LoopThread(app, name="test")
        loop.start()
        loop.stop()
        assert loop.join(10)
        assert "no way to close" in caplog.text

    def test_the_watch_can_be_off(self, app: Celery) -> None:
        app.conf.worker_loop_held_warning_s = 0
        before = set(threading.enumerate())
        loop = LoopThread(app, name="test")
        loop.start()
        assert {thread.name for thread in set(threading.enumerate()) - before} == {"test"}
        loop.stop()
        assert loop.join(10)

    def test_a_call_after_the_end_is_no_error(self, app: Celery) -> None:
        loop = LoopThread(app, name="test")
        loop.start()
        loop.stop()
        assert loop.join(10)
        loop.call_soon(print, "too late")

    def test_background_tasks_end_with_the_loop(
        self, app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tasks.loop.CANCEL_GRACE_S", 0.2)
        loop = LoopThread(app, name="test")
        loop.start()

        async def deaf() -> None:
            for _ in range(2):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(30)

        async def begin() -> list[asyncio.Task[None]]:
            tasks = [asyncio.create_task(body()) for body in (deaf, lambda: asyncio.sleep(30))]
            await asyncio.sleep(0)
            return tasks

        _, obedient = self.run(loop, begin)
        loop.stop()
        assert loop.join(10)
        assert obedient.cancelled()
        assert "ignores its cancellation" in caplog.text


class TestTaskPool:
    """With plain functions in place of Celery's tracer and its callbacks."""

    @pytest.fixture
    def pool(self) -> Iterator[TaskPool]:
        pool = TaskPool(1, app=Celery("parts", set_as_current=False))
        pool.start()
        yield pool
        pool.stop()

    def test_it_needs_no_callbacks(self, pool: TaskPool) -> None:
        ran = threading.Event()
        pool.apply_async(ran.set)
        assert ran.wait(10)

    def test_what_the_tracer_raises_is_a_failure(self, pool: TaskPool) -> None:
        failures: list[Any] = []
        pool.apply_async(lambda: 1 / 0, error_callback=failures.append)
        assert eventually(lambda: failures)[0].type is ZeroDivisionError

    @pytest.mark.parametrize("error", [ValueError("no backend"), SystemExit(3)])
    def test_a_callback_that_fails_costs_no_slot(
        self, pool: TaskPool, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        def fail(_: Any) -> None:
            raise error

        pool.apply_async(lambda: 1, callback=fail)
        outcomes: list[Any] = []
        pool.apply_async(lambda: 2, callback=outcomes.append)
        assert eventually(lambda: outcomes) == [2]
        assert repr(error) in caplog.text

    def test_jobs_that_end_at_once_end_one_after_the_other(self, pool: TaskPool) -> None:
        outcomes: list[int] = []
        for number in range(2000):  # inside of each other, they would pass the limit of recursion
            pool.apply_async(lambda number=number: number, callback=outcomes.append)
        eventually(lambda: len(outcomes) == 2000)
        assert outcomes == list(range(2000))

    def test_a_job_that_has_ended_is_not_cancelled(self, pool: TaskPool) -> None:
        outcomes: list[Any] = []
        job = pool.apply_async(lambda: 1, callback=outcomes.append)
        eventually(lambda: outcomes)
        job.terminate()
        job.terminate()
        eventually(lambda: pool.info["running"] == 0)
        assert outcomes == [1]

    def test_it_stops_twice(self, pool: TaskPool) -> None:
        pool.stop()
        pool.terminate()
        assert pool.num_processes == 1
