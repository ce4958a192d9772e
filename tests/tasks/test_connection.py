"""The worker's connection: tried again each second without a line each time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent_exec.broker.transport import register
from agent_exec.embedded import EmbeddedServer
from tasks import connection
from tasks.celery import app
from tasks.connection import AMQP, Connection, thinned


def test_the_worker_connects_by_it() -> None:
    assert isinstance(app.amqp, AMQP)
    assert app.amqp.Connection is Connection


def test_a_broker_that_is_away_is_tried_again_soon_however_long_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PAUSE_S", 0.01)
    register()
    with EmbeddedServer(tmp_path / "redis") as server:
        url = server.url
    told: list[float] = []
    attempts = 0

    def count() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 50:
            server.start()

    with Connection(url) as away:
        began = time.monotonic()
        away.ensure_connection(lambda _error, pause_s: told.append(pause_s), None, callback=count)
        assert away.connected
        assert time.monotonic() - began < 20, "with growing pauses it is minutes"
    assert told == [0.01], "fifty attempts, one line"
    server.stop()


def test_of_many_failures_the_first_is_told_and_then_one_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(connection, "monotonic", lambda: now_s)
    told: list[str] = []
    tell = thinned(lambda error, _pause_s: told.append(str(error)))
    for second in range(70):
        now_s = 1_000.0 + second
        tell(OSError(f"at {second}"), 1.0)
    assert told == ["at 0", "at 30", "at 60"]
