"""Tokens on their way from a provider to the event log: gathered for some milliseconds, then told as one event.

Owns the gathering, and the telling: a process has one teller, which tells what all its streams have gathered in one call a
tick, however many they are. A token that comes after a pause is told at once. Does not know who reads them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from agent_exec.contract.event import EventName
from agent_exec.errors import StorageError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Event, Hold, Piece
from agent_exec.store import Store
from tasks.pace import WIDENS_FROM, flush_after_s

#: How many pieces one call tells, so that no script holds Redis long.
AT_ONCE = 100
#: A token may end in the middle of a surrogate pair, whose halves UTF-8 does not have.
ANY_TEXT = "surrogatepass"


class Teller:
    """Tells what the streams of one process have gathered."""

    def __init__(self, store: Store, *, flush_ms: int, flush_bytes: int) -> None:
        """Take where the events go, and how long and how far tokens are gathered; with 0 ms each is told by itself."""
        self.flush_ms = flush_ms
        self._store = store
        self._flush_s = flush_ms / 1000
        self._flush_bytes = flush_bytes
        #: The streams with something to tell.
        self._due: dict[TokenStream, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_at_s = float("-inf")
        self._telling: asyncio.Task[None] | None = None

    async def take(self, stream: TokenStream, *, gathered_bytes: int) -> None:
        """Tell what a stream has gathered: at the next tick, or at once if it is much. At once, the log is waited for."""
        self._due[stream] = None
        if gathered_bytes >= self._flush_bytes or self._flush_s == 0:
            while stream in self._due:
                await self._settled()
                self._tick()
            await self._settled()
        elif self._timer is None and self._telling is None:
            self._wind()

    def forget(self, stream: TokenStream) -> None:
        """Tell nothing more of a stream."""
        self._due.pop(stream, None)

    async def finish(self, stream: TokenStream) -> None:
        """Return when the log has taken all that it was told of a stream, through an outage however long."""
        await self._settled()
        if stream.is_unsure:
            await self._store.insist(ledger.tell_pieces([stream.piece()]))

    async def _settled(self) -> None:
        """Return when what is under way has an answer."""
        while self._telling is not None:
            await asyncio.wait([self._telling])  # which is everybody's: a caller that is cancelled leaves it alone

    def _wind(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(max(loop.time(), self._ticked_at_s + self._flush_s), self._tick)

    def _tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and self._telling is None:
            due, self._due = list(self._due), {}
            loop = asyncio.get_running_loop()
            self._ticked_at_s = loop.time()
            self._telling = loop.create_task(self._tell_all(due))

    async def _tell_all(self, due: Sequence[TokenStream]) -> None:
        try:
            for start in range(0, len(due), AT_ONCE):
                await self._tell(due[start : start + AT_ONCE])
        finally:
            self._telling = None
            if self._due and self._flush_s > 0:
                self._wind()

    async def _tell(self, streams: Sequence[TokenStream]) -> None:
        """Tell a piece of each. What gets no answer is told again under its number, so the log takes it once."""
        try:
            await self._store.run(ledger.tell_pieces([stream.piece() for stream in streams]))
        except StorageError:
            pass
        except Exception as error:  # some execution's own fault: whose it is shows when each is told by itself
            if len(streams) == 1:
                streams[0].fault = error
            else:
                for stream in streams:
                    await self._tell([stream])
                return
        else:
            for stream in streams:
                stream.told()
        self._due |= dict.fromkeys(stream for stream in streams if stream.has_more)


class TokenStream:
    """The tokens of one attempt of one completion step."""

    def __init__(self, teller: Teller, hold: Hold, *, events: int = 0) -> None:
        """Take who tells them, for which attempt, and how many events its execution has."""
        self._teller = teller
        self._hold = hold
        self._events = events
        self._told_at_s = float("-inf")  # kept where the pace has widened
        self._gathered: list[str] = []
        self._gathered_bytes = 0
        self._number = 1
        self._unsure: str | None = None
        self._stopped = False
        #: Why nothing can be told of it.
        self.fault: Exception | None = None
        #: All that was put in, as UTF-8: a list of the tokens would take ten times the memory in each of many streams.
        self._said = bytearray()

    @property
    def text(self) -> str:
        """All that was put in."""
        return self._said.decode(errors=ANY_TEXT)

    @property
    def has_more(self) -> bool:
        """Whether something is to be told by itself."""
        return not self._stopped and self.fault is None and (self.is_unsure or self._has_gathered)

    @property
    def _has_gathered(self) -> bool:
        """Whether there is text, and enough time has passed since the last; none is enough for an execution at its cap."""
        if not self._gathered or self._events < WIDENS_FROM:
            return bool(self._gathered)
        after_s = flush_after_s(self._events, flush_ms=self._teller.flush_ms)
        return after_s is not None and asyncio.get_running_loop().time() - self._told_at_s >= after_s

    @property
    def is_unsure(self) -> bool:
        """Whether a piece was told and got no answer."""
        return self._unsure is not None

    async def put(self, token: str) -> None:
        """Add a token; waits where the log is slower than the provider."""
        if self.fault is not None:
            raise self.fault
        encoded = token.encode(errors=ANY_TEXT)
        self._said += encoded
        self._gathered.append(token)
        self._gathered_bytes += len(encoded)
        if self._events < WIDENS_FROM or self.has_more:
            await self._teller.take(self, gathered_bytes=self._gathered_bytes)

    def piece(self) -> Piece:
        """Return what is to be told now: the piece that got no answer, or else what was gathered since."""
        if self._unsure is None:
            self._unsure = self.event("".join(self._gathered)).json
            self._gathered.clear()
            self._gathered_bytes = 0
        return Piece(self._hold, self._number, self._unsure)

    def told(self) -> None:
        """The log has the piece, or refuses it for good."""
        self._unsure = None
        self._number += 1
        self._events += 1
        if self._events >= WIDENS_FROM:
            self._told_at_s = asyncio.get_running_loop().time()

    def event(self, text: str, *, is_final: bool = False) -> Event:
        """Return the event of some of the text."""
        fence = self._hold.fence
        attempt = f',"attempt":{fence}' if fence > 1 else ""
        is_last = "true" if is_final else "false"
        return Event(EventName.TOKEN, f'{{"token":{json.dumps(text)},"is_final":{is_last}{attempt}}}')

    async def rest(self) -> str:
        """Stop, and return the tokens not told yet: they belong into the step's own record."""
        self.stop()
        await self._teller.finish(self)
        rest = "".join(self._gathered)
        self._gathered.clear()
        return rest

    def stop(self) -> None:
        """Tell nothing more by itself."""
        self._stopped = True
        self._teller.forget(self)
