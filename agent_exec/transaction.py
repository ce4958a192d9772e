"""A transaction that code plans which is no script: what it has read must still hold when it is written, or nothing is.

Owns what was read and what is to be written. Does not know what any key means, nor who plans. A plan is made again and
again: whatever it wants to read and has not seen ends it with `Unread`; that is read, and the plan is made anew.

    seen = {}
    while True:
        transaction = Transaction(seen)
        try:
            plan(transaction)
        except Unread as unread:
            seen |= await store.insist(observe(unread.reads))
        else:
            if await store.insist(commit(transaction)) == "written":
                break
            seen = {}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_exec.script import Call, Script

_LUA = Path(__file__).parent / "lua"
_OBSERVE = Script.load(_LUA / "observe.lua")
_COMMIT = Script.load(_LUA / "commit.lua")

#: A command of Redis: its name, the key, and what else it takes.
Words = tuple[str, ...]
#: What a key must hold for a command to write to it.
_TYPES = {"LPUSH": "list", "LTRIM": "list", "ZADD": "zset", "ZREM": "zset", "SADD": "set"}


class Unread(BaseException):
    """The plan rests on something that has not been read yet. No Exception: who plans may go on behind any of those."""

    def __init__(self, reads: Sequence[Words]) -> None:
        """Take the commands."""
        super().__init__(reads)
        self.reads = reads


class Transaction:
    """What one plan has read, and what it writes."""

    def __init__(self, seen: Mapping[Words, Any]) -> None:
        """Take what was read so far: each command and its reply."""
        self._seen = seen
        self.reads: dict[Words, Any] = {}
        self.writes: list[Words] = []
        self._set: dict[str, bytes] = {}

    def read(self, *commands: Words) -> list[Any]:
        """Return the replies of commands that read; each must be the same when this is written.

        Raises:
            Unread: one of them has not been read.
        """
        replies = self.glance(*commands)
        self.reads.update(zip(commands, replies, strict=True))
        return replies

    def glance(self, *commands: Words) -> list[Any]:
        """Return the replies of commands that read, where something else that was read vouches for them.

        Raises:
            Unread: one of them has not been read.
        """
        try:
            return [self._seen[command] for command in commands]
        except KeyError:
            raise Unread(commands) from None

    def get(self, key: str) -> bytes | None:
        """Return what a STRING holds, as this transaction has left it.

        Raises:
            Unread: it has not been read.
        """
        if key in self._set:
            return self._set[key]
        [value] = self.read(("GET", key))
        return value  # type: ignore[no-any-return]  # a reply

    def write(self, name: str, key: str, *words: str | bytes | int) -> None:
        """Have a command written, behind those before it."""
        texts = [word.decode() if isinstance(word, bytes) else str(word) for word in words]
        if name == "SET":
            self._set[key] = texts[0].encode()
        self.writes.append((name, key, *texts))


def observe(reads: Sequence[Words]) -> Call[dict[Words, Any]]:
    """Read, all in one moment; answers each command with its reply."""
    words = [word for command in reads for word in _counted(command)]
    return Call(
        _OBSERVE,
        [command[1] for command in reads],
        words,
        lambda reply: dict(zip(reads, reply, strict=True)),
    )


def commit(transaction: Transaction) -> Call[str]:
    """Write all of it, if what was read still holds.

    Answers `written`; `changed`; or `wrong type of` and a key, which holds something else than what is to be written to it.
    The first write should be one that a full Redis refuses.
    """
    reads, writes = transaction.reads, transaction.writes
    return Call(
        _COMMIT,
        [command[1] for command in (*reads, *writes)],
        [
            len(reads),
            *[word for command, reply in reads.items() for word in (_digest(reply), *_counted(command))],
            *[word for command in writes for word in (_TYPES.get(command[0], ""), *_counted(command))],
        ],
        lambda reply: reply.decode(),
    )


def _counted(command: Words) -> tuple[str, ...]:
    return str(len(command)), *command


def _digest(reply: bytes | int | None) -> str:
    text = reply if isinstance(reply, bytes) else b"" if reply is None else str(reply).encode()
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()
