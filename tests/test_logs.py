"""What comes out of a process: one line a record, whoever logged it, and no secret in any."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent_exec.logs import redact, secrets_of
from agent_exec.settings import read_settings

TOKEN = 'service-token-"quoted"'

PROGRAM = """
import logging, sys, warnings
import structlog
from agent_exec import logs
from agent_exec.settings import read_settings

own = logging.getLogger("uvicorn.access")
own.addHandler(logging.StreamHandler(sys.stdout))
own.propagate = False
for _ in range(2):
    logs.configure(read_settings(log_format=sys.argv[1], service_token=sys.argv[2]), "worker")
ours = structlog.get_logger("tasks.step")
with structlog.contextvars.bound_contextvars(tenant_id="acme"):
    ours.info("step done", step="prompt")
    logging.getLogger("library").warning("said %s", "this")
ours.debug("not wanted")
logging.getLogger("websockets.client").debug("> Authorization: Bearer nobody-may-see-this")
own.info("GET /v1/executions")
ours.warning("forged\\n{}\\r\\x1b[31m\\u2028", token=sys.argv[2], header="Bearer abcdefghijkl")
try:
    raise ValueError("the key sk-canary-0123456789 is wrong")
except ValueError:
    ours.exception("failed", kind=ValueError)
warnings.warn("old", DeprecationWarning, stacklevel=1)
"""


def logged(root: Path, form: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", PROGRAM, form, TOKEN],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == ""
    return ended.stderr


@pytest.fixture(scope="module")
def records(root: Path) -> list[dict[str, Any]]:
    """What the program above logs as JSON."""
    return [json.loads(line) for line in logged(root, "json").splitlines()]


def test_each_record_is_one_line_of_json(records: list[dict[str, Any]]) -> None:
    """S27."""
    assert [record["message"].partition("\n")[0] for record in records[:-1]] == [
        "step done",
        "said this",
        "GET /v1/executions",
        "forged",
        "failed",
    ]
    assert {record["process"] for record in records} == {"worker"}
    assert all(record["timestamp"].endswith("Z") for record in records)
    assert [record["level"] for record in records] == ["info", "warning", "info", "warning", "error", "warning"]


def test_tenant_and_step_are_on_every_record_of_theirs(records: list[dict[str, Any]]) -> None:
    assert [record.get("tenant_id") for record in records] == ["acme", "acme", None, None, None, None]
    assert (records[0]["step"], records[0]["logger"]) == ("prompt", "tasks.step")
    assert records[1]["logger"] == "library"


def test_no_secret_comes_out(records: list[dict[str, Any]]) -> None:
    """S27: neither in a message, nor in what goes with it, nor in an exception."""
    assert (records[3]["token"], records[3]["header"]) == ("[redacted]", "Bearer [redacted]")
    assert "the key [redacted] is wrong" in records[4]["exception"]
    assert "nobody-may-see-this" not in str(records)


def test_warnings_are_records_too(records: list[dict[str, Any]]) -> None:
    assert "DeprecationWarning: old" in records[-1]["message"]


def test_for_eyes_a_record_cannot_forge_a_line_or_speak_to_the_terminal(root: Path) -> None:
    """S27."""
    lines = logged(root, "console").splitlines()
    [forged] = [line for line in lines if "forged" in line]
    assert r"forged\n{}\r\x1b[31m\u2028" in forged
    assert "token='[redacted]'" in forged
    assert any(line.startswith("Traceback") for line in lines)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Authorization: bearer abc.def-ghi", "Authorization: bearer [redacted]"),
        ("the bearer token is refused", "the bearer token is refused"),
        ("sk-proj-0123456789abcdef", "[redacted]"),
        ("gsk_0123456789abcdef", "[redacted]"),
        ("a task-12345678 and risk-free words", "a task-12345678 and risk-free words"),
        ("aek_0123456789ab_" + "s" * 43, "aek_0123456789ab_[redacted]"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "[redacted]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "[redacted]"),
        ("AKIAIOSFODNN7EXAMPLE and AKIAlower", "[redacted] and AKIAlower"),
        ("ghp_0123456789abcdefghij xoxb-0123456789-abc", "[redacted] [redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII/+=\n-----END RSA PRIVATE KEY-----\nrest", "[redacted]\nrest"),
        ('{"pem": "-----BEGIN PRIVATE KEY-----\\nMII", "n": 1}', '{"pem": "[redacted]", "n": 1}'),
        ("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----"),
        ("rediss://user:pass@host:6379/0", "rediss://user:[redacted]@host:6379/0"),
        ("redis://:pass@host", "redis://:[redacted]@host"),
        ("redis://host:6379/0?a=b@c", "redis://host:6379/0?a=b@c"),
    ],
)
def test_what_looks_like_a_credential_is_struck_out(text: str, redacted: str) -> None:
    """S27, B41."""
    assert redact(text) == redacted


@pytest.mark.parametrize("text", ["-----BEGIN PRIVATE KEY-----a" * 20_000, "eyJaaaaaa." * 50_000, "://a:" * 100_000])
def test_no_text_makes_it_slow(text: str) -> None:
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 5


def test_every_secret_of_the_settings_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "an-openai-key")
    settings = read_settings(
        service_token=TOKEN,
        providers={"local": {"base_url": "http://l", "api_key": "a-local-key"}, "x": {"base_url": "y"}},
        mcp_servers={"files": {"url": "http://f/mcp", "token": "a-token-of-files"}},
    )
    secrets = secrets_of(settings)
    assert {TOKEN, "an-openai-key", "a-local-key"} <= set(secrets)
    assert "none" not in secrets, "too short to be a secret, and a word"
    assert redact(json.dumps({"t": TOKEN}), secrets=secrets) == '{"t": "[redacted]"}'


FULL_DISK = """
import logging, os, sys
from agent_exec import logs
from agent_exec.settings import read_settings

logs.configure(read_settings(), "worker")
written, sys.stderr = sys.stderr, open("/dev/full", "w")
for number in range(3):
    logging.getLogger("library").warning("lost %d", number)
sys.stderr = written
logging.getLogger("library").warning("room again")
logging.getLogger("library").warning("as ever")
os._exit(0)  # a flush of the other stream could not be
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_lines_that_a_full_disk_swallows_are_counted(root: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=root, capture_output=True, text=True, check=True)
    lines = [json.loads(line)["message"] for line in ended.stderr.splitlines()]
    assert lines == ["3 log lines before this one could not be written", "room again", "as ever"]
