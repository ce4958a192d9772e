"""The store under a clock of its own: the only thing about the ledger that its tests play."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from typing import TypeVar

from agent_exec.script import Call, Script
from agent_exec.store import BlockingStore

T = TypeVar("T")

CLOCK = "ax:test:clock"
BEGIN_MS = 1_700_000_000_000
TIME = "redis.call('TIME')"


@cache
def clocked(script: Script) -> Script:
    """The same script, which asks the played clock for the time."""
    source = script.source.replace(TIME, f"redis.call('HMGET', '{CLOCK}', 's', 'us')")
    return Script(script.name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class ClockedStore(BlockingStore):
    """The store; `now_ms` is what Redis's clock shows, until it is told otherwise."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.now_ms = BEGIN_MS
        self.advance(0)

    def advance(self, ms: int) -> None:
        """Let time pass."""
        self.now_ms += ms
        shown = {"s": self.now_ms // 1000, "us": self.now_ms % 1000 * 1000}
        self.redis.pipeline().hset(CLOCK, mapping=shown).expire(CLOCK, 600).execute()

    def run(self, call: Call[T]) -> T:
        return super().run(replace(call, script=clocked(call.script)))
