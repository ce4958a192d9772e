"""Processes that are to die, made by the dozen: a process that has imported the service once, and forks.

Owns the forking. A worker spends nine tenths of its start on imports; a fork of this process has them behind it, and is
otherwise what `python -m tests.service.crashing` is: a process in a group of its own, with the environment that it is given.
Nothing here reads a setting or opens a connection before the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.processes import KEPT, ROOT

#: What workers, shims and the command import before they read their settings.
IMPORTED = (
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.worker.worker",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "tasks.steps",
    "tasks.pool",
    "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl",
    "starlette.applications",
    "agent_exec.cli.submit",
    "tests.service.crashing",
)


class Fork:
    """One process that is to die."""

    def __init__(self, pid: int, log: Path) -> None:
        """Take its id, and where it writes."""
        self.pid = pid
        self.log = log

    @property
    def running(self) -> bool:
        """Whether it has not ended; nobody has to wait for it."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it has not died."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Nursery:
    """The forking process, from the outside."""

    def __init__(self, directory: Path) -> None:
        """Start it; `directory` takes the logs."""
        self._directory = directory
        self._forks: list[Fork] = []
        self._kept = {name: os.environ[name] for name in KEPT if name in os.environ}  # noqa: TID251 handed to children
        with (directory / "nursery.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.nursery"],
                cwd=ROOT,
                env=self._kept,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def fork(self, *arguments: str, env: Mapping[str, str]) -> Fork:
        """Start `python -m tests.service.crashing` with these arguments."""
        log = self._directory / f"fork-{len(self._forks)}.log"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"arguments": arguments, "env": {**self._kept, **env}, "log": str(log)}
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        fork = Fork(int(self._process.stdout.readline()), log)
        self._forks.append(fork)
        return fork

    def clear(self) -> None:
        """Kill those that have not died."""
        for fork in self._forks:
            if fork.running:
                fork.kill()

    def close(self) -> None:
        """End it, and all that it has made."""
        self.clear()
        self._process.communicate(timeout=20)


def main() -> None:
    """Fork for every line of the standard input, and answer the child's id."""
    for module in IMPORTED:
        importlib.import_module(module)
    assert "celeryconfig" not in sys.modules, "settings are a child's own"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever has died is gone
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be(order)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _be(order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    os.environ.clear()  # noqa: TID251 a process's own
    os.environ.update(order["env"])  # noqa: TID251 a process's own
    sys.argv = ["crashing", *order["arguments"]]
    from tests.service import crashing

    crashing.main()
    os._exit(0)


if __name__ == "__main__":
    main()
