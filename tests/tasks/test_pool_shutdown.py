"""How a worker of the asyncio pool ends: warm, cold, soft, killed, or before it began."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGQUIT, SIGTERM
from typing import Any

import pytest

from agent_exec.embedded import EmbeddedServer
from tests.tasks import pool_app
from tests.tasks.pool_worker import PoolWorker, diary_name, eventually, pool_worker, sending_app

WAIT_S = 15
COLD = 0
"""Celery's exit code of a cold shutdown, on every pool."""

AT_ONCE_S = 4.0
"""How long an idle worker takes to stop on a busy machine, twice over; far below every sleep of these tests."""

Start = Callable[..., AbstractContextManager[PoolWorker]]


@pytest.fixture(scope="module")
def url(redis_server: EmbeddedServer) -> Iterator[str]:
    with sending_app(redis_server.url):
        yield redis_server.url


@pytest.fixture
def start(url: str, tmp_path: Path) -> Start:
    """A context manager that runs a worker with the given arguments."""
    return partial(pool_worker, url, tmp_path)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[[str], str]:
    """Write the test application with a changed setting; return the module's name, for `app_name`."""

    def write(line: str) -> str:
        (tmp_path / "pool_app_variant.py").write_text(f"from tests.tasks.pool_app import app\n\n{line}\n")
        return "pool_app_variant"

    return write


def test_a_warm_shutdown_lets_tasks_finish(start: Start) -> None:
    short, long, waiting = diary_name(), diary_name(), diary_name()
    with start("-c", "2", "--prefetch-multiplier", "2") as worker:
        worker.send(pool_app.until_told, short)
        result = worker.send(pool_app.until_told, long)
        eventually(lambda: worker.diary(short) and worker.diary(long))
        worker.send(pool_app.until_told, waiting)
        eventually(lambda: worker.unacknowledged() == 3)
        worker.signal(SIGTERM)
        eventually(lambda: "stopping: 2 tasks waited for, 1 handed back unstarted" in worker.log)
        worker.tell(short)
        eventually(lambda: worker.unacknowledged() == 2)  # acknowledged while the other still runs
        assert worker.diary(long) == ["starts"]
        worker.tell(long)
        assert worker.exit_code() == 0
        assert result.get(timeout=WAIT_S) == long
        assert worker.diary(short) == worker.diary(long) == ["starts", "ends"]
        assert (worker.waiting(), worker.unacknowledged(), worker.diary(waiting)) == (1, 0, [])
        assert worker.diary(f"lifespan {worker.process.pid}") == ["opened", "closed"]
        assert worker.log.count(f"process {worker.process.pid} begins") == 1
        assert worker.log.count(f"process {worker.process.pid} ends") == 1


def test_a_cold_shutdown_hands_tasks_back(start: Start) -> None:
    diary = diary_name()
    with start() as worker:
        result = worker.send(pool_app.until_told, diary)
        eventually(lambda: worker.diary(diary) == ["starts"])
        worker.signal(SIGQUIT)
        assert worker.exit_code(within_s=AT_ONCE_S) == COLD
        assert worker.diary(diary) == ["starts", "cancelled"]
        assert (worker.waiting(), worker.unacknowledged()) == (1, 0)
        assert worker.diary(f"lifespan {worker.process.pid}") == ["opened", "closed"]
        assert result.state == "PENDING"


def test_a_warm_shutdown_turns_cold(start: Start) -> None:
    diary = diary_name()
    with start() as worker:
        worker.send(pool_app.until_told, diary)
        eventually(lambda: worker.diary(diary) == ["starts"])
        worker.signal(SIGTERM)
        eventually(lambda: "stopping: 1 tasks waited for" in worker.log)
        worker.signal(SIGQUIT)
        assert worker.exit_code(within_s=AT_ONCE_S) == COLD
        assert worker.diary(diary) == ["starts", "cancelled"]
        assert worker.waiting() == 1


def test_a_warm_shutdown_has_its_limit(start: Start, variant: Callable[[str], str]) -> None:
    diary = diary_name()
    with start(app_name=variant("app.conf.worker_warm_shutdown_limit_s = 0.5")) as worker:
        worker.send(pool_app.until_told, diary)
        eventually(lambda: worker.diary(diary) == ["starts"])
        worker.signal(SIGTERM)
        assert worker.exit_code() == 0
        assert worker.diary(diary) == ["starts", "cancelled"]
        assert worker.waiting() == 1


def test_a_soft_shutdown_gives_tasks_their_time(start: Start) -> None:
    short, long = diary_name(), diary_name()
    with start("worker.soft_shutdown_timeout=1.5") as worker:
        result = worker.send(pool_app.until_told, short)
        worker.send(pool_app.until_told, long)
        eventually(lambda: worker.diary(short) and worker.diary(long))
        worker.signal(SIGQUIT)
        eventually(lambda: "Initiating Soft Shutdown" in worker.log)
        worker.tell(short)
        assert worker.exit_code(within_s=1.5 + AT_ONCE_S) == COLD
        assert result.get(timeout=WAIT_S) == short
        assert worker.diary(short) == ["starts", "ends"]
        assert worker.diary(long) == ["starts", "cancelled"]
        assert worker.waiting() == 1
        worker.tell(long)
        with start("-c", "1", queue=worker.queue):
            eventually(lambda: worker.diary(long) == ["starts", "cancelled", "starts", "ends"])


def test_a_killed_workers_tasks_run_elsewhere(start: Start, variant: Callable[[str], str]) -> None:
    diary = diary_name()
    impatient = variant('app.conf.broker_transport_options["visibility_timeout"] = 2')
    with start(app_name=impatient) as worker:
        result = worker.send(pool_app.until_told, diary)
        eventually(lambda: worker.diary(diary) == ["starts"])
        worker.signal(SIGKILL)
        worker.exit_code()
        worker.tell(diary)
        with start(queue=worker.queue, app_name=impatient) as other:
            assert result.get(timeout=WAIT_S) == diary
            assert other.diary(diary) == ["starts", "starts", "ends"]


@pytest.mark.parametrize("deaf", [[pool_app.deaf_sleep, pool_app.sync_sleep], [pool_app.blocks]])
def test_nothing_keeps_a_cold_shutdown_from_ending(start: Start, deaf: list[Any]) -> None:
    with start() as worker:
        for task in deaf:
            diary = diary_name()
            worker.send(task, 60.0, diary)
            eventually(partial(worker.diary, diary))
        worker.signal(SIGQUIT)
        assert worker.exit_code() == COLD
        assert worker.waiting() == len(deaf)


def test_resources_that_do_not_open_stop_the_worker(start: Start, variant: Callable[[str], str]) -> None:
    broken = variant('app.conf.worker_lifespan = "tests.tasks.pool_app:broken_lifespan"')
    with start(app_name=broken, ready=False) as worker:
        assert worker.exit_code() == 1
        assert "LookupError('no such resource')" in worker.log


def test_a_worker_whose_resources_take_long_to_open_can_be_stopped(start: Start, variant: Callable[[str], str]) -> None:
    endless = variant('app.conf.worker_lifespan = "tests.tasks.pool_app:endless_lifespan"')
    with start(app_name=endless, ready=False) as worker:
        eventually(lambda: f"process {worker.process.pid} begins" in worker.log)
        worker.signal(SIGTERM)
        assert worker.exit_code() == 0


def test_it_runs_on_asyncios_own_loop(start: Start, variant: Callable[[str], str]) -> None:
    without_uvloop = variant("import asyncio, tasks.loop; tasks.loop.new_event_loop = asyncio.new_event_loop")
    with start(app_name=without_uvloop) as worker:
        assert worker.send(pool_app.over_soft_limit, diary_name(), True).get(timeout=WAIT_S) == "cleaned up"
        assert worker.stats()["loop"] == "asyncio"
        worker.signal(SIGTERM)
        assert worker.exit_code() == 0


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_other_pools_close_their_resources(start: Start, pool: str) -> None:
    with start("-P", pool, "-c", "1") as worker:
        worker.send(pool_app.adds, 1, 2).get(timeout=WAIT_S)
        process_ids = worker.stats().get("processes") or [worker.process.pid]
        assert [worker.diary(f"lifespan {pid}") for pid in process_ids] == [["opened"]]
        worker.signal(SIGTERM)
        assert worker.exit_code() == 0
        assert [worker.diary(f"lifespan {pid}") for pid in process_ids] == [["opened", "closed"]]
