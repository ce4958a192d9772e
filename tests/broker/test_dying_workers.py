"""Workers that are killed, stopped or replaced, and a server that dies under them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import redis

from agent_exec.embedded import EmbeddedServer
from tests.broker.fair_app import LEASE_S
from tests.broker.workers import POOLS, Bench, Start, diary_of, until


@pytest.mark.parametrize("pool", POOLS)
def test_a_killed_workers_messages_are_run_by_another_within_seconds(start: Start, bench: Bench, pool: str) -> None:
    victim, other = start(pool), start(pool)
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
    until(bench.idle)
    assert other.stop() == 0


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
    until(bench.idle)
    assert len(bench.begun()) == 10
    assert successor.ready().stop() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_stands_still_past_its_leases_and_goes_on_settles_nothing_of_others(
    start: Start, bench: Bench, pool: str
) -> None:
    sleeper, other = start(pool).ready(), start().ready()
    for number in range(12):
        bench.send(f"agent_execution:t{number % 3}", f"z{number}", 0.5)
    until(lambda: len(bench.begun()) == 8)
    sleeper.signal(signal.SIGSTOP)
    until(lambda: len(bench.ended()) == 12)  # the other has run what the sleeper holds, once its leases had lapsed
    until(bench.idle)
    sleeper.signal(signal.SIGCONT)
    bench.send("agent_execution:t1", "afterwards")
    until(lambda: "afterwards" in bench.ended())
    until(lambda: bench.pages.llen("begun") == bench.pages.llen("ended"))
    assert sleeper.stop() == 0
    assert other.stop() == 0
    assert 13 < len(bench.begun()) <= 17, "what the sleeper held ran there and elsewhere, and nowhere a third time"
    assert bench.idle()


def test_a_worker_that_stands_still_for_a_moment_doubles_nothing(start: Start, bench: Bench) -> None:
    sleeper, other = start("asyncio").ready(), start().ready()
    for number in range(40):
        bench.send(f"agent_execution:t{number % 3}", f"m{number}", 0.1)
    for _ in range(4):
        sleeper.signal(signal.SIGSTOP)
        time.sleep(LEASE_S / 8)  # how long it stands still
        sleeper.signal(signal.SIGCONT)
        time.sleep(LEASE_S / 8)
    until(lambda: len(bench.ended()) == 40)
    until(bench.idle)
    assert len(bench.begun()) == 40
    assert sleeper.stop() == other.stop() == 0


def test_a_restart_repeats_nothing_and_a_long_task_is_never_doubled(start: Start, bench: Bench) -> None:
    old, new = start(), start("solo")
    old.ready()
    new.ready()
    bench.send("agent_tools:t:a", "long/1", LEASE_S * 1.5)
    bench.send("agent_tools:t:a", "long/2", LEASE_S * 1.5)
    until(lambda: len(bench.begun()) == 2)
    for number in range(60):
        bench.send("agent_execution:t", f"r/{number}", 0.02)
    until(lambda: len(bench.begun()) > 10)
    assert old.stop() == 0
    until(lambda: len(bench.ended()) == 62)
    assert len(bench.begun()) == 62
    until(bench.idle)
    assert new.stop() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_server_that_is_killed_and_comes_back(start: Start, redis_url: str, tmp_path: Path, pool: str) -> None:
    with EmbeddedServer(tmp_path / "redis") as server:
        worker = start(pool, url=server.url).ready()
        bench = Bench(server.url, diary_of(redis_url))
        for number in range(40):
            bench.send("agent_execution:t", f"o{number}", 0.1)
        until(lambda: len(bench.begun()) > 8)
        server.kill()
        server.restart()
        until(lambda: _answers(bench) and len(bench.ended()) == 40)
        until(bench.idle)
        assert len(bench.begun()) == 40
        worker.stop()
        bench.close()


def _answers(bench: Bench) -> bool:
    try:
        return bool(bench.store.redis.ping())
    except redis.RedisError:
        return False
