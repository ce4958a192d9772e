"""Processes that live and die together: started by honcho, logged, stopped in order, and never left behind.

Owns their lives and their logs. Does not know what any of them does.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from honcho.colour import get_colours
from honcho.printer import Printer
from honcho.process import Process

from sandbox import ending, keeper

#: What a process gets to end in good order, before it is killed.
STOP_S = 10.0
POLL_S = 0.001
LOOK_S = 0.2
LAST_LINES = 15


class Failed(Exception):
    """What a person has to know: which process failed, where its log is, and how the log ends."""


class Member:
    """One process of a group. honcho puts into it what happens: it started, it wrote a line, it ended."""

    def __init__(
        self, process: Process, *, log: Path, ready_words: str | None, happened: Callable[[Member, Any], None]
    ) -> None:
        """Start it; its output goes to `log`. With `ready_words`, it is ready when it has written them."""
        self.name: str = process.name
        self.log = log
        self.pid = 0
        self.exit_code: int | None = None
        self.is_ready = threading.Event()
        self._ready_words = None if ready_words is None else ready_words.encode()
        self._happened = happened
        self._output = log.open("wb", buffering=0)
        self._follower = threading.Thread(target=process.run, args=(self,), name=self.name, daemon=True)
        self._follower.start()
        while not self.pid:  # an Event would be left in disorder by a signal that raises
            time.sleep(POLL_S)

    def put(self, message: Any) -> None:
        """Take one of honcho's messages; called in the thread that follows the process."""
        match message.type:
            case "start":
                self.pid = message.data["pid"]
                self._happened(self, message)
            case "line":
                self._output.write(message.data)
                if self._ready_words is not None and self._ready_words in message.data:
                    self.is_ready.set()
                self._happened(self, message)
            case "stop":
                self._output.close()
                self.exit_code = message.data["returncode"]
                self._happened(self, message)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started, while it runs."""
        if self.exit_code is not None:
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS answers the second for a group of zombies
            os.killpg(self.pid, number)

    def await_end(self, *, until: float) -> None:
        """Return when it has ended, or at `until` of the monotonic clock."""
        self._follower.join(max(0.0, until - time.monotonic()))

    def failure(self, what: str) -> Failed:
        """Return the error that says `what` it did."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return Failed("\n".join([f"{self.name} {what}. Its log: {self.log}", *[f"    {line}" for line in lines]]))


class Supervised:
    """A group of processes. A context manager: none of them outlives it, nor this process, however it ends."""

    def __init__(
        self,
        *,
        logs: Path,
        environment: Mapping[str, str],
        directory: Path,
        echo: bool,
        stop_order: Sequence[Sequence[str]] = (),
        if_killed: Sequence[str] = (),
    ) -> None:
        """Take the folder of the logs, what all processes have in common, and whether to print what they say.

        `stop_order` names who is asked to end first, who next; whoever is not named is asked last. `if_killed` is a
        command that is run at the end, should this process be killed.
        """
        logs.mkdir(parents=True, exist_ok=True)
        self.members: dict[str, Member] = {}
        self._logs = logs
        self._environment = environment
        self._directory = directory
        self._stop_order = stop_order
        self._printer = Printer(sys.stdout) if echo else None
        self._one_at_a_time = threading.Lock()
        self._colours = get_colours()
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, *if_killed],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(
        self,
        name: str,
        *command: str,
        environment: Mapping[str, str] | None = None,
        ready_words: str | None = None,
    ) -> Member:
        """Start one process, in a session of its own so that Ctrl-C is ours to pass on."""
        process = Process(
            f"exec {shlex.join(command)}",
            name=name,
            colour=next(self._colours),
            env={**self._environment, **(environment or {})},
            cwd=self._directory,
        )
        if self._printer is not None:
            self._printer.width = max(self._printer.width, len(name))
        member = Member(process, log=self._logs / f"{name}.log", ready_words=ready_words, happened=self._happened)
        self.members[name] = member
        return member

    def check(self) -> None:
        """Look whether all members run.

        Raises:
            Failed: one has ended.
        """
        for member in self.members.values():
            if member.exit_code is not None:
                raise member.failure(f"ended with exit code {member.exit_code}")

    def wait(self) -> NoReturn:
        """Wait until one of the members ends by itself.

        Raises:
            Failed: one has.
        """
        while True:  # looks, and does not block: a signal may be given to any thread, and would not wake this one
            self.check()
            time.sleep(LOOK_S)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop whoever still runs."""
        with ending.undisturbed():
            self._stop()
            self._tell_keeper(".")
            self._keeper.communicate()

    def _stop(self) -> None:
        everybody = list(self.members.values())
        named = [[member for member in everybody if member.name in wave] for wave in self._stop_order]
        left = [member for member in everybody if not any(member in wave for wave in named)]
        for wave in [*named, left]:
            for member in wave:
                member.send(signal.SIGTERM)
            _await_end(wave)
        for member in everybody:
            member.send(signal.SIGKILL)
        _await_end(everybody)

    def _happened(self, member: Member, message: Any) -> None:
        match message.type:
            case "start":
                self._tell_keeper(f"+{member.pid}")
            case "line":
                if self._printer is not None:
                    with self._one_at_a_time:
                        self._printer.write(message)
            case "stop":
                self._tell_keeper(f"-{member.pid}")

    def _tell_keeper(self, line: str) -> None:
        assert self._keeper.stdin is not None
        with self._one_at_a_time, suppress(BrokenPipeError):  # somebody killed it; the processes go on without
            print(line, file=self._keeper.stdin, flush=True)


def _await_end(members: Iterable[Member]) -> None:
    until = time.monotonic() + STOP_S
    for member in members:
        member.await_end(until=until)
