"""A Redis as compose.yaml starts it, with the users of docs/redis-users.acl, each with a password of its own.

Owns starting it, and what it has refused. Does not know who its users are beyond their names.
"""

from __future__ import annotations

import re
import secrets
import textwrap
from pathlib import Path
from typing import Any

import redis

from agent_exec.embedded import _binary
from tests.processes import ROOT, Process, free_port, wait_until

USERS_FILE = ROOT / "docs" / "redis-users.acl"


class GuardedRedis(Process):
    """A running server with an append-only file; as a context manager: runs inside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        users = re.findall(r">change-me-(\w+)", USERS_FILE.read_text())
        self.passwords = {user: secrets.token_hex(24) for user in users}
        told = {user.upper(): word for user, word in self.passwords.items()}
        env = {**told, "APPENDFSYNC": "everysec", "MAXMEMORY": "1gb"}
        super().__init__("redis", ["sh", "-c", self._command()], env=env, log=directory / "redis.log")
        wait_until(lambda: "Ready to accept" in self.output or not self.running, what="the server")
        assert self.running, self.output

    def _command(self) -> str:
        """Return the command of compose.yaml, with the places of this machine for those of the container."""
        [found] = re.findall(r"- sh\n +- -c\n +- \|\n((?: {8}.*\n)+)", (ROOT / "compose.yaml").read_text())
        text = textwrap.dedent(found).replace("$$", "$")
        for there, here in (
            ("/etc/redis-users.acl", str(USERS_FILE)),
            ("/tmp/users.acl", str(self.directory / "users.acl")),
            ("exec redis-server", f"exec {_binary()} --port {self.port}"),
            ("--bind 0.0.0.0", "--bind 127.0.0.1"),
            ("--dir /data", f"--dir {self.directory}"),
        ):
            assert there in text
            text = text.replace(there, here)
        return text

    def url(self, user: str) -> str:
        """Return the address for one of its users."""
        return f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.port}/0"

    def client(self, user: str, *, name: str = "test") -> redis.Redis:
        """Return a connection of one of its users, under a name."""
        return redis.Redis.from_url(self.url(user), client_name=name)

    def refused(self) -> list[str]:
        """Return what it has refused its users, oldest first; not those who came under the name `probe`."""
        with self.client("operator") as operator:
            log: Any = operator.acl_log(1_000)
        rows = [row for row in log if row["client-info"]["name"] != "probe"]
        told = [f"{row['username']}: {row['reason']} {row['object']} ({row['context']})" for row in rows]
        return list(dict.fromkeys(reversed(told)))
