"""Our own token: the setting, or a file that changes under a running process."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from agent_exec import logs
from agent_exec.errors import SettingsInvalid
from agent_exec.service_token import MAX_TOKEN_BYTES, ServiceToken
from agent_exec.settings import read_settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


def token(path: Path) -> ServiceToken:
    return ServiceToken(read_settings(service_token="of-the-setting", service_token_file=path))


def test_without_a_file_it_is_the_settings() -> None:
    ours = ServiceToken(read_settings(service_token="of-the-setting"))
    ours.check()
    assert (ours.current(), ours.secrets()) == ("of-the-setting", ("of-the-setting",))
    assert ServiceToken(read_settings(service_token="")).secrets() == ()


def test_a_file_is_read_again_when_it_changes_or_is_replaced(path: Path) -> None:
    path.write_text("first-token\n")
    ours = token(path)
    ours.check()
    assert ours.current() == "first-token"
    path.write_text("second\n")
    assert ours.current() == "second"
    (path.parent / "new").write_text("third!")
    (path.parent / "new").rename(path)
    assert ours.current() == "third!"
    assert ours.secrets() == ("third!", "second"), "the one before may hold for a while"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two words", b"\xff\xfe", b"x" * (MAX_TOKEN_BYTES + 1)])
def test_what_is_no_token_stops_a_start_and_never_a_run(
    path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("good-token")
    ours = token(path)
    assert ours.current() == "good-token"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_SERVICE_TOKEN_FILE") as invalid:
        ours.check()
    assert "two words" not in str(invalid.value)
    assert [ours.current() for _ in range(3)] == ["good-token"] * 3
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1, "told once"
    path.write_text("better-token")
    assert ours.current() == "better-token"


ROTATED = """
import logging, pathlib, sys
from agent_exec import logs
from agent_exec.settings import read_settings

path = pathlib.Path(sys.argv[1])
logs.configure(read_settings(service_token_file=path), "notifier")
path.write_text("a-later-token")
logging.getLogger("library").warning("a-later-token and an-early-token")
path.unlink()
logging.getLogger("library").warning("still a-later-token")
"""


def test_no_log_shows_a_token_that_came_later(path: Path) -> None:
    path.write_text("an-early-token")
    told = subprocess.run([sys.executable, "-c", ROTATED, str(path)], capture_output=True, text=True, check=True)
    assert "[redacted] and [redacted]" in told.stderr
    assert "still [redacted]" in told.stderr
    assert "cannot be read" in told.stderr
    assert "token and" not in told.stderr
    settings = read_settings(service_token_file=path)
    path.write_text("a-third-token")
    assert "a-third-token" in logs.secrets_of(settings), "what strikes it out of a tool's answer"
