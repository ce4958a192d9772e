"""Workers that are killed, stopped or replaced, and a server that dies under them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
import redis

from agent_exec.embedded import EmbeddedServer
from tests.broker.fair_app import LEASE_S
from tests.broker.workers import POOLS, Bench, Start, Worker, diary_of, until

#: When a consumer ends, of a worker that stops or of a connection that is lost, Celery's prefork pool (`AsynPool.flush`)
#: drops each task that it has written to a child and has not heard of, though the child may be at it: nobody settles its
#: message then, which goes back and is run again. One a child at most.
FORGOTTEN = 4

# -- workers that die


def test_a_killed_workers_messages_are_run_by_another_within_seconds(start: Start, bench: Bench) -> None:
    # One pool stands for all: nothing of a worker runs after SIGKILL, and what it has in its hands is the main process's.
    victim, other = start("asyncio"), start()
    victim.ready()
    other.ready()
    for number in range(200):
        bench.send(f"agent_execution:t{number % 3}", f"k/{number}", 0.02)
    for number in range(20):
        bench.send("agent_execution", f"plain/{number}", 0.02)
    until(lambda: len(bench.begun()) > 50)
    victim.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    until(lambda: len(bench.ended()) == 220)
    assert time.monotonic() - killed_at < LEASE_S + 6
    assert len(bench.begun()) - 220 <= 4, "no more are repeated than were in its hands"
    assert other.stop() == 0
    assert not bench.unsettled()


def test_a_stopped_worker_that_is_then_killed_loses_nothing(start: Start, bench: Bench) -> None:
    victim = start().ready()
    until(lambda: "blmove" in {client["cmd"] for client in bench.store.redis.client_list()})
    victim.signal(signal.SIGSTOP)
    for number in range(5):
        bench.send("agent_execution:t", f"s/{number}")
        bench.send("agent_execution", f"plain/{number}")
    successor = start()
    victim.signal(signal.SIGKILL)
    until(lambda: len(bench.ended()) == 10)
    assert successor.ready().stop() == 0
    assert not bench.unsettled()
    assert len(bench.begun()) == 10


def test_a_restart_repeats_nothing_and_a_long_task_is_never_doubled(start: Start, bench: Bench) -> None:
    # Not prefork: Celery forgets a task that a child has begun and not yet announced as the worker stops (see FORGOTTEN).
    old, new = [start(pool, slots=3) for pool in ("asyncio", "threads")], start("solo")
    for worker in (*old, new):
        worker.ready()
    bench.send("agent_tools:t:a", "long/1", LEASE_S * 1.5)
    bench.send("agent_tools:t:a", "long/2", LEASE_S * 1.5)
    until(lambda: len(bench.begun()) == 2)
    for number in range(60):
        bench.send("agent_execution:t", f"r/{number}", 0.05)
    until(lambda: len(bench.begun()) > 10)
    for worker in old:
        worker.begin_stop()
    assert [worker.stop() for worker in old] == [0, 0]
    until(lambda: len(bench.ended()) == 62)
    assert new.stop() == 0
    assert not bench.unsettled(), "a worker that stops says what it has done"
    assert len(bench.begun()) == 62


# -- workers that live on: one of each pool in turn, and one more for all of them, at a server of their own


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server that may die."""
    with EmbeddedServer(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture(scope="module")
def other(start: Start, server: EmbeddedServer) -> Worker:
    """The worker beside those that something befalls."""
    return start(url=server.url)


@pytest.fixture(scope="module", params=POOLS)
def sleeper(start: Start, server: EmbeddedServer, other: Worker, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A worker of each pool."""
    worker = start(request.param, url=server.url).ready()
    other.ready()
    yield worker
    assert worker.stop() == 0


@pytest.fixture
def away(server: EmbeddedServer, redis_url: str) -> Iterator[Bench]:
    """The bench of these workers; none of them has anything in its hands when its test ends."""
    bench = Bench(server.url, diary_of(redis_url))
    yield bench
    until(bench.idle)
    bench.close()


def test_a_worker_that_stands_still_past_its_leases_and_goes_on_settles_nothing_of_others(
    sleeper: Worker, away: Bench
) -> None:
    for number in range(12):
        away.send(f"agent_execution:t{number % 3}", f"z{number}", 0.5)
    until(lambda: len(away.begun()) == 8)
    sleeper.signal(signal.SIGSTOP)
    until(lambda: len(away.ended()) == 12)  # the other has run what the sleeper holds, once its leases had lapsed
    until(away.idle)
    sleeper.signal(signal.SIGCONT)
    away.send("agent_execution:t1", "afterwards")
    until(lambda: "afterwards" in away.ended())
    until(lambda: away.pages.llen("begun") == away.pages.llen("ended"))
    until(away.idle)
    assert 13 < len(away.begun()) <= 17, "what the sleeper held ran there and elsewhere, and nowhere a third time"


@pytest.mark.parametrize("sleeper", ["asyncio"], indirect=True)  # no lease lapses, so nothing happens in any pool
def test_a_worker_that_stands_still_for_a_moment_doubles_nothing(sleeper: Worker, away: Bench) -> None:
    for number in range(40):
        away.send(f"agent_execution:t{number % 3}", f"m{number}", 0.1)
    for _ in range(4):
        sleeper.signal(signal.SIGSTOP)
        time.sleep(LEASE_S / 8)  # how long it stands still
        sleeper.signal(signal.SIGCONT)
        time.sleep(LEASE_S / 8)
    until(lambda: len(away.ended()) == 40)
    until(away.idle)
    assert len(away.begun()) == 40


def test_a_server_that_is_killed_and_comes_back(sleeper: Worker, server: EmbeddedServer, away: Bench) -> None:
    for number in range(40):
        away.send("agent_execution:t", f"o{number}", 0.1)
    until(lambda: len(away.begun()) > 8)
    server.kill()
    server.restart()
    until(lambda: _answers(away) and len(away.ended()) == 40)
    until(away.idle)
    assert len(away.begun()) <= 40 + (FORGOTTEN if sleeper.pool == "prefork" else 0)


def _answers(bench: Bench) -> bool:
    try:
        return bool(bench.store.redis.ping())
    except redis.RedisError:
        return False
