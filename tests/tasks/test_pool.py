"""What a task may do and see, the same on every pool; and what the asyncio pool promises on top."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
from celery import chain
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded, WorkerLostError

from agent_exec.embedded import EmbeddedServer
from tests.tasks import pool_app
from tests.tasks.pool_worker import PoolWorker, diary_name, eventually, pool_worker, sending_app

ARGUMENTS = {
    "asyncio": ["-c", "300"],
    "threads": ["-c", "8", "-P", "threads"],
    "prefork": ["-c", "4", "-P", "prefork"],
}
IMPLEMENTATIONS = {
    "asyncio": "tasks.pool:TaskPool",
    "threads": "celery.concurrency.thread:TaskPool",
    "prefork": "celery.concurrency.prefork:TaskPool",
}
WAIT_S = 15


class Abort(BaseException):
    """Ends the thread that waits for a coroutine, as KeyboardInterrupt does."""


@pytest.fixture(scope="module")
def start(
    redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., PoolWorker]]:
    """Start a worker that lives to the end of the module; the same arguments return the same worker."""
    started: dict[tuple[str, ...], PoolWorker] = {}
    directory = tmp_path_factory.mktemp("workers")
    with sending_app(redis_server.url), ExitStack() as stack:

        def worker(*arguments: str) -> PoolWorker:
            if arguments not in started:
                started[arguments] = stack.enter_context(pool_worker(redis_server.url, directory, *arguments))
            return started[arguments]

        yield worker


@pytest.fixture(params=ARGUMENTS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(pool: str, start: Callable[..., PoolWorker]) -> PoolWorker:
    """A worker of each pool in turn."""
    return start(*ARGUMENTS[pool])


@pytest.fixture
def aio(start: Callable[..., PoolWorker]) -> PoolWorker:
    """A worker of the asyncio pool with many slots."""
    return start(*ARGUMENTS["asyncio"])


@pytest.fixture
def single(start: Callable[..., PoolWorker]) -> PoolWorker:
    """A worker of the asyncio pool with one slot, which takes more messages than it can run."""
    return start("-c", "1", "--prefetch-multiplier", "4")


class TestEveryPool:
    def test_the_option_picks_it_and_the_configuration_is_its_default(self, worker: PoolWorker, pool: str) -> None:
        assert worker.stats()["implementation"] == IMPLEMENTATIONS[pool]

    def test_a_coroutine_returns(self, worker: PoolWorker) -> None:
        assert worker.send(pool_app.adds, 1, 2).get(timeout=WAIT_S) == 3

    def test_a_function_returns_and_sees_its_request(self, worker: PoolWorker) -> None:
        result = worker.send(pool_app.sync_add, 1, 2)
        outcome = result.get(timeout=WAIT_S)
        assert (outcome["sum"], outcome["id"]) == (3, result.id)

    def test_tasks_that_interleave_see_themselves(self, worker: PoolWorker) -> None:
        results = [worker.send(pool_app.who_am_i, 5) for _ in range(20)]
        for result in results:
            assert set(result.get(timeout=WAIT_S)) == {result.id}

    def test_a_signal_and_the_coroutine_share_their_context(self, worker: PoolWorker) -> None:
        result = worker.send(pool_app.seen_before)
        assert result.get(timeout=WAIT_S) == result.id
        eventually(lambda: f"after {result.id}: {result.id} {result.id} SUCCESS" in worker.log)

    def test_retry(self, worker: PoolWorker) -> None:
        assert worker.send(pool_app.retried).get(timeout=WAIT_S) == 2

    def test_autoretry_for(self, worker: PoolWorker) -> None:
        assert worker.send(pool_app.auto_retried).get(timeout=WAIT_S) == 2

    @pytest.mark.parametrize("task", [pool_app.fails, pool_app.sync_fails])
    def test_a_failure_keeps_its_traceback(self, worker: PoolWorker, task: Any) -> None:
        result = worker.send(task)
        with pytest.raises(ValueError, match="as asked"):
            result.get(timeout=WAIT_S)
        assert 'raise ValueError("as asked")' in result.traceback

    def test_an_inner_cancellation_is_a_failure(self, worker: PoolWorker) -> None:
        with pytest.raises(Exception, match="cancelled from within") as raised:
            worker.send(pool_app.cancels_itself).get(timeout=WAIT_S)
        assert type(raised.value).__name__ == "CancelledError"

    def test_a_chain_goes_on(self, worker: PoolWorker) -> None:
        links = [pool_app.adds.s(1, 2), pool_app.adds.s(10), pool_app.sync_add.s(100)]
        outcome = chain(*(link.set(queue=worker.queue) for link in links)).apply_async().get(timeout=WAIT_S)
        assert outcome["sum"] == 113

    def test_messages_are_acknowledged(self, worker: PoolWorker) -> None:
        worker.send(pool_app.adds, 1, 2).get(timeout=WAIT_S)
        eventually(lambda: worker.unacknowledged() == 0)


class TestTimeLimits:
    """On the pools that have them: the threads pool has none."""

    @pytest.fixture(params=["asyncio", "prefork"])
    def pool(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_the_soft_one_is_raised_at_the_await(self, worker: PoolWorker) -> None:
        diary = diary_name()
        assert worker.send(pool_app.over_soft_limit, diary, True).get(timeout=WAIT_S) == "cleaned up"
        assert worker.diary(diary) == ["child cancelled", "told"]

    def test_the_soft_one_fails_a_task_that_lets_it_pass(self, worker: PoolWorker) -> None:
        with pytest.raises(SoftTimeLimitExceeded):
            worker.send(pool_app.over_soft_limit, diary_name(), False).get(timeout=WAIT_S)

    def test_the_hard_one_fails_the_task(self, worker: PoolWorker) -> None:
        result = worker.send(pool_app.over_hard_limit, diary_name())
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=WAIT_S)
        eventually(lambda: worker.unacknowledged() == 0)


class TestAsyncioPool:
    def test_300_tasks_run_at_once(self, aio: PoolWorker) -> None:
        for result in [aio.send(pool_app.meet, "300", 300) for _ in range(300)]:
            result.get(timeout=WAIT_S)

    def test_20_functions_run_at_once_in_threads(self, aio: PoolWorker) -> None:
        for result in [aio.send(pool_app.sync_meet, "20", 20) for _ in range(20)]:
            result.get(timeout=WAIT_S)

    def test_a_hard_limit_cancels_the_coroutine(self, aio: PoolWorker) -> None:
        diary = diary_name()
        aio.send(pool_app.over_hard_limit, diary)
        eventually(lambda: aio.diary(diary) == ["cancelled"])

    def test_a_coroutine_that_ignores_its_hard_limit_loses_its_slot(self, single: PoolWorker) -> None:
        deaf = single.send(pool_app.deaf_sleep, 20.0, diary_name(), time_limit=0.2)
        after = single.send(pool_app.adds, 1, 2)
        with pytest.raises(TimeLimitExceeded):
            deaf.get(timeout=WAIT_S)
        assert after.get(timeout=WAIT_S) == 3
        assert single.stats()["left-behind"] >= 1

    def test_a_function_over_its_hard_limit_loses_its_slot(self, single: PoolWorker) -> None:
        stuck = single.send(pool_app.sync_sleep, 2.5, diary_name(), time_limit=0.4, soft_time_limit=0.2)
        after = single.send(pool_app.adds, 1, 2)
        with pytest.raises(TimeLimitExceeded):
            stuck.get(timeout=WAIT_S)
        assert after.get(timeout=WAIT_S) == 3
        assert f"Soft time limit (0.2s) exceeded for {pool_app.sync_sleep.name}[{stuck.id}]" in single.log
        before = single.stats()["left-behind"]
        assert before > 0
        eventually(lambda: single.stats()["left-behind"] < before)

    def test_a_system_exit_fails_the_task_alone(self, aio: PoolWorker) -> None:
        diary = diary_name()
        other = aio.send(pool_app.until_told, diary)
        eventually(lambda: aio.diary(diary))
        with pytest.raises(WorkerLostError, match=r"SystemExit\(3\)"):
            aio.send(pool_app.exits).get(timeout=WAIT_S)
        aio.tell(diary)
        assert other.get(timeout=WAIT_S) == diary

    def test_revoke_with_terminate_cancels_the_coroutine(self, aio: PoolWorker) -> None:
        diary = diary_name()
        result = aio.send(pool_app.until_told, diary)
        eventually(lambda: aio.diary(diary) == ["starts"])
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=WAIT_S)
        eventually(lambda: aio.diary(diary) == ["starts", "cancelled"])
        eventually(lambda: aio.unacknowledged() == 0)
        eventually(lambda: f"after {result.id}: {result.id} {result.id} None" in aio.log)

    @pytest.mark.parametrize("terminate", [True, False])
    def test_a_task_revoked_while_it_waits_never_starts(self, single: PoolWorker, terminate: bool) -> None:
        first, diary = diary_name(), diary_name()
        running = single.send(pool_app.until_told, first)
        eventually(lambda: single.diary(first) == ["starts"])
        waiting = single.send(pool_app.until_told, diary)
        eventually(lambda: single.unacknowledged() == 2)
        waiting.revoke(terminate=terminate)
        with pytest.raises(TaskRevokedError):
            waiting.get(timeout=WAIT_S)
        single.tell(first)
        assert running.get(timeout=WAIT_S) == first
        eventually(lambda: single.unacknowledged() == 0)
        assert single.diary(diary) == []

    def test_inspect_shows_what_runs(self, aio: PoolWorker) -> None:
        diary = diary_name()
        result = aio.send(pool_app.until_told, diary)
        eventually(lambda: aio.diary(diary) == ["starts"])
        stats = aio.stats()
        assert (stats["max-concurrency"], stats["running"], stats["waiting"]) == (300, 1, 0)
        active = pool_app.app.control.inspect([aio.name], timeout=5, limit=1).active()
        assert [(task["id"], task["worker_pid"]) for task in active[aio.name]] == [(result.id, aio.process.pid)]
        result.revoke(terminate=True)
        eventually(lambda: aio.stats()["running"] == 0)

    def test_pool_grow_and_shrink_move_the_limit(self, single: PoolWorker) -> None:
        first, second = diary_name(), diary_name()
        results = [single.send(pool_app.until_told, diary) for diary in (first, second)]
        eventually(lambda: single.diary(first) == ["starts"])
        eventually(lambda: single.unacknowledged() == 2)
        assert single.diary(second) == []
        pool_app.app.control.pool_grow(1, destination=[single.name])
        eventually(lambda: single.diary(second) == ["starts"])
        pool_app.app.control.pool_shrink(1, destination=[single.name])
        for result in results:
            result.revoke(terminate=True)
        eventually(lambda: single.stats()["max-concurrency"] == 1)
        eventually(lambda: single.unacknowledged() == 0)

    def test_code_that_holds_the_loop_is_reported(self, aio: PoolWorker) -> None:
        result = aio.send(pool_app.blocks, 1.0, diary_name())
        result.get(timeout=WAIT_S)
        holder = f"{pool_app.blocks.name}[{result.id}]"
        eventually(lambda: f"{holder} let go of the event loop after " in aio.log)
        assert f"{holder} has held the event loop for " in aio.log
        assert "time.sleep(seconds)" in aio.log
        assert aio.stats()["loop-holds"] >= 1

    def test_the_resources_are_opened_once(self, aio: PoolWorker) -> None:
        aio.send(pool_app.adds, 1, 2).get(timeout=WAIT_S)
        assert aio.diary(f"lifespan {aio.process.pid}") == ["opened"]

    def test_autoscale(self, start: Callable[..., PoolWorker]) -> None:
        worker = start("--autoscale", "3,1")
        diaries = [diary_name() for _ in range(3)]
        results = [worker.send(pool_app.until_told, diary) for diary in diaries]
        eventually(lambda: [worker.diary(diary) for diary in diaries] == [["starts"]] * 3)
        assert worker.stats()["max-concurrency"] == 3
        for result in results:
            result.revoke(terminate=True)
        eventually(lambda: worker.unacknowledged() == 0)


class TestOutsideOfAWorker:
    async def test_a_direct_call_returns_the_coroutine(self) -> None:
        assert await pool_app.adds(1, 2) == 3

    def test_a_direct_call_of_a_function_returns_its_value(self) -> None:
        assert pool_app.sync_add(1, 2)["sum"] == 3

    def test_apply_runs_the_coroutine(self, start: Callable[..., PoolWorker]) -> None:
        result = pool_app.who_am_i.apply((2,))
        assert set(result.get()) == {result.id}

    async def test_apply_works_inside_of_a_loop(self, start: Callable[..., PoolWorker]) -> None:
        assert pool_app.adds.apply((1, 2)).get() == 3

    @pytest.mark.parametrize(
        ("interruption", "diary_of_child"),
        [(SoftTimeLimitExceeded(9), ["child cancelled", "told"]), (Abort(), ["child cancelled"])],
    )
    def test_what_interrupts_the_waiting_thread_reaches_the_coroutine(
        self, aio: PoolWorker, interruption: BaseException, diary_of_child: list[str]
    ) -> None:
        def interrupt(*_: object) -> None:
            raise interruption

        diary = diary_name()
        previous = signal.signal(signal.SIGUSR1, interrupt)  # as prefork's soft limit does
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            with suppress(Abort):
                assert pool_app.over_soft_limit.apply((diary, True)).get() == "cleaned up"
        finally:
            signal.signal(signal.SIGUSR1, previous)
        timer.join()
        assert eventually(partial(aio.diary, diary)) == diary_of_child
