"""The processes that a benchmark compares: started, paused, measured, and gone behind it.

Owns what is read of a process: CPU and memory. Does not know what any process serves.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from agent_exec.embedded import EmbeddedServer
from agent_exec.store import BlockingStore

ROOT = Path(__file__).parent.parent
#: Between two looks at a condition: seldom enough to cost what is measured nothing.
LOOK_EVERY_S = 0.05
#: How much of a process's output an error shows.
LAST_CHARS = 2_000


class Worker:
    """A process under its own Python, and what it has used."""

    def __init__(self, arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Start `python *arguments` in the checkout; it sees no variable but `env`."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in stop()
        self._popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", **(env or {})},
            stdout=self._log,
            stderr=self._log,
        )
        self._process = psutil.Process(self._popen.pid)

    @property
    def cpu_s(self) -> float:
        """User and system time so far, of all its threads."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(self._process.memory_info().rss)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it meanwhile, so that all work is there before any is taken."""
        self._popen.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._popen.send_signal(signal.SIGCONT)

    @property
    def last_words(self) -> str:
        """The end of what it has written."""
        self._log.seek(0)
        return self._log.read()[-LAST_CHARS:]

    def kill(self) -> None:
        """End it as a power cut would."""
        self._popen.kill()
        self._popen.wait()
        self._log.close()

    def stop(self) -> None:
        """Ask it to end, and insist where it has work left."""
        self._popen.terminate()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._log.close()


class Server:
    """A private server of one side of a comparison: the same binary and the same configuration, AOF on, as deployed."""

    def __init__(self, server: EmbeddedServer) -> None:
        """Take the server, running."""
        self.url = server.url
        self.store = BlockingStore(server.url)
        self.redis: Any = self.store.redis  # redis-py's types say that each answer may be a coroutine

    @property
    def cpu_s(self) -> float:
        """User and system time so far; from the server itself, which counts in µs and not in ticks."""
        used = self.redis.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    @property
    def memory_bytes(self) -> int:
        """What it has allocated, less the buffers of connections."""
        self.redis.connection_pool.disconnect()
        time.sleep(LOOK_EVERY_S)  # it notices
        return int(self.redis.info("memory")["used_memory"])


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run a server of its own."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory) / "redis") as embedded:
        running = Server(embedded)
        try:
            yield running
        finally:
            running.store.close()


@contextlib.contextmanager
def process(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """Run a process."""
    worker = Worker(arguments, env=env)
    try:
        yield worker
    finally:
        worker.stop()


def celery(app: str, *arguments: str) -> list[str]:
    """Return the arguments of Python that start a worker of `app`."""
    return ["-m", "celery", "-A", app, *arguments]


def wait_for(condition: Callable[[], bool], *, within_s: float, every_s: float = LOOK_EVERY_S) -> bool:
    """Wait for a condition; return whether it came true."""
    give_up_at = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(every_s)
    return True
