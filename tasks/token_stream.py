"""Tokens on their way from a provider to the event log: gathered for some milliseconds, then told as one event.

Owns the gathering. All streams of a process flush on the same tick, so that their events travel in one pipeline. Does not
know who reads them.
"""

from __future__ import annotations

import asyncio
import json

from agent_exec.contract.event import EventName
from agent_exec.errors import StorageError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Event, Hold
from agent_exec.script import Call
from agent_exec.store import Store

#: A piece this long is told at once: bounds an event whatever the tick.
MAX_CHARS = 4_096
#: A token may end in the middle of a surrogate pair, whose halves UTF-8 does not have.
ANY_TEXT = "surrogatepass"


class TokenStream:
    """The tokens of one attempt of one completion step."""

    def __init__(self, store: Store, hold: Hold, *, flush_ms: int) -> None:
        """Take where the events go, and how long tokens are gathered; with 0 each is told by itself."""
        self._store = store
        self._hold = hold
        self._flush_s = flush_ms / 1000
        self._gathered: list[str] = []
        self._chars = 0
        self._piece = 1
        self._unsure: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None
        #: All that was put in, as UTF-8: a list of the tokens would take ten times the memory in each of many streams.
        self._said = bytearray()

    @property
    def text(self) -> str:
        """All that was put in."""
        return self._said.decode(errors=ANY_TEXT)

    async def put(self, token: str) -> None:
        """Add a token; waits where the log is slower than the provider."""
        self._said += token.encode(errors=ANY_TEXT)
        self._gathered.append(token)
        self._chars += len(token)
        if self._flush_s == 0 or self._chars >= MAX_CHARS:
            await self._settled()
            await self._tell()
        elif self._timer is None:
            self._wind()

    async def rest(self) -> str:
        """Stop, and return the tokens not told yet: they belong into the step's own record."""
        self.stop()
        await self._settled()
        if self._unsure is not None:
            await self._store.insist(self._call(self._unsure))
        rest = "".join(self._gathered)
        self._gathered.clear()
        return rest

    def stop(self) -> None:
        """Tell nothing more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wind(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at((loop.time() // self._flush_s + 1) * self._flush_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._telling is not None and not self._telling.done():
            self._wind()  # the log is slow; gather on
        else:
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        """Tell one piece. A piece that got no answer is told again under its number, so the log takes it once."""
        if self._unsure is None:
            if not self._gathered:
                return
            self._unsure = "".join(self._gathered)
            self._gathered.clear()
            self._chars = 0
        try:
            await self._store.run(self._call(self._unsure))
        except StorageError:
            if self._timer is None and self._flush_s > 0:
                self._wind()
        else:
            self._unsure = None
            self._piece += 1

    def _call(self, text: str) -> Call[str]:
        return ledger.tell(self._hold, [token_event(text)], piece=self._piece)

    async def _settled(self) -> None:
        if self._telling is not None:
            await self._telling


def token_event(token: str, *, is_final: bool = False) -> Event:
    """Return the event of a piece of text."""
    return Event(EventName.TOKEN, f'{{"token":{json.dumps(token)},"is_final":{"true" if is_final else "false"}}}')
