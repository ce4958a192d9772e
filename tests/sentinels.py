"""A primary, its replica and a sentinel, as real processes: what a fail-over is made of.

Owns starting and ending. Does not know what is stored.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from agent_exec.embedded import _binary
from tests.processes import Process, free_port, wait_until

MASTER_NAME = "cell-1"
PASSWORD = "password-of-the-servers"
SENTINEL_PASSWORD = "password-of-the-sentinel"
#: How long the sentinel lets a silent primary be.
DOWN_AFTER_MS = 500


class Sentinels:
    """The three of them; as a context manager: run inside."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[Process] = []
        #: Nobody listens on the first address: a sentinel that is away is passed over.
        self.url = ""
        self.ports: list[int] = []

    def primary_port(self) -> int:
        """Return where the sentinel says that the primary is."""
        with redis.Redis(port=self._sentinel_port, password=SENTINEL_PASSWORD) as sentinel:
            known: Any = sentinel.sentinel_masters()
            return int(known[MASTER_NAME]["port"])

    def kill_primary(self) -> None:
        """End the primary as a crash would."""
        self._processes[self.ports.index(self.primary_port())].kill()

    def fail_over(self) -> None:
        """Have the sentinel make the replica the primary, and the primary a replica."""
        before = self.primary_port()
        with redis.Redis(port=self._sentinel_port, password=SENTINEL_PASSWORD) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER_NAME)
        wait_until(lambda: self.primary_port() != before and self._role(before) == "slave", what="the fail-over")

    def __enter__(self) -> Self:
        self.ports = [free_port(), free_port()]
        primary, replica = self.ports
        self._server("primary", primary)
        self._server("replica", replica, "--replicaof", "127.0.0.1", str(primary))
        self._sentinel_port = free_port()
        config = self._directory / "sentinel.conf"
        config.write_text(
            f"port {self._sentinel_port}\n"
            f"requirepass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {primary} 1\n"
            f"sentinel auth-pass {MASTER_NAME} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {MASTER_NAME} 5000\n"
        )
        self._start("sentinel", [_binary(), str(config), "--sentinel"])
        self.url = f"sentinel://:{PASSWORD}@127.0.0.1:{free_port()}/0;sentinel://127.0.0.1:{self._sentinel_port}"
        wait_until(self._hurried, what="the sentinel")
        wait_until(self._replicated, what="the sentinel to know a replica that is in step")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()

    def _server(self, name: str, port: int, *more: str) -> None:
        directory = self._directory / name
        directory.mkdir()
        command = [_binary(), "--port", str(port), "--dir", str(directory), "--appendonly", "yes", "--save", ""]
        command += ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]
        self._start(name, [*command, *more])

    def _start(self, name: str, command: list[str]) -> None:
        self._processes.append(Process(name, command, env={}, log=self._directory / f"{name}.log"))

    def _role(self, port: int) -> str:
        with redis.Redis(port=port, password=PASSWORD) as server:
            return str(server.info("replication")["role"])

    def _hurried(self) -> bool:
        """Have the sentinel look around ten times a second instead of every ten seconds."""
        try:
            with redis.Redis(port=self._sentinel_port, password=SENTINEL_PASSWORD) as sentinel:
                sentinel.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", "100", "PUBLISH-PERIOD", "100")
        except redis.RedisError:
            return False
        return True

    def _replicated(self) -> bool:
        try:
            with redis.Redis(port=self._sentinel_port, password=SENTINEL_PASSWORD) as sentinel:
                known: Any = sentinel.sentinel_slaves(MASTER_NAME)
        except redis.RedisError:
            return False
        return any(one["master-link-status"] == "ok" and "slave" in one["flags"] for one in known)
