"""Real processes for tests: started with a log, waited for, and gone behind the test.

Owns starting and ending. Does not know what any process serves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
#: The variables of the machine that a process may see; all else is set by the test.
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


class Process:
    """A process of its own group, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        """Start it in the checkout; `command` runs under this Python where it begins with `-m`."""
        self.name = name
        self.log = log
        self._begins_at = log.stat().st_size if log.exists() else 0
        full = [sys.executable, *command] if command[0] == "-m" else list(command)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}  # noqa: TID251 handed to a child
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                full, cwd=ROOT, env={**kept, **env}, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_bytes()[self._begins_at :].decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill it with all its children, as a power cut would."""
        self._signal_group(signal.SIGKILL)
        self._popen.wait()

    def stop(self, *, within_s: float = 20) -> int:
        """Ask it to end, and return its exit code; what does not end in time is killed and fails the test."""
        if self.running:
            self._popen.terminate()
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {within_s} s:\n{self.output[-4_000:]}") from None
        finally:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


def free_port() -> int:
    """Return a port of the loopback that nobody holds now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], T], *, within_s: float = 15, what: str = "the condition") -> T:
    """Return the first true value of `condition`; fail the test if there is none in time."""
    give_up = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up:
            raise AssertionError(f"{what} did not come true within {within_s} s")
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Say whether an HTTP server answers there."""
    try:
        with urllib.request.urlopen(url, timeout=1):  # noqa: S310 a URL of the test's own
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
