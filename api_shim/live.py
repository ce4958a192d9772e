"""Who waits for what comes next: every stream that anybody in this process follows, over one connection to Redis.

One task blocks on all of them together (XREAD), and wakes those whose stream grew. It holds no events: a reader that is
woken reads for itself, so a slow one costs no memory and a lost wake-up loses no event. Does not know HTTP, nor what the
streams hold.

Source: Redis, "XREAD", blocking for data; "CLIENT UNBLOCK", its use with a changing set of streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from agent_exec import address
from agent_exec.ending import end
from agent_exec.store import CONNECTION

log = structlog.get_logger(__name__)

#: Below the time that a connection waits for any answer, so that a dead server is noticed.
BLOCK_MS = 1_000
#: What comes within this long of a wake-up is seen by the next one.
GATHER_S = 0.005
#: An XREAD costs Redis about 1 µs a stream; a pause of 20 µs a stream keeps each process to a twentieth of Redis's time.
GATHER_PER_STREAM_S = 0.000_020
#: An unblock that came before its block had no effect, and is sent again.
UNBLOCK_AGAIN_S = 0.005
RECONNECT_S = 0.25


class Watch:
    """One reader's view of one stream, whose entries are `<number>-0`."""

    def __init__(self, *, after: int) -> None:
        """Begin behind entry `after`."""
        self.known = after
        self._stirred = asyncio.Event()

    async def beyond(self, number: int, *, timeout_s: float) -> bool:
        """Wait for an entry after `number`; return whether there is one. May return early without."""
        if self.known <= number:
            self.known = number
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._stirred.wait()
        return self.known > number

    def grew(self, number: int) -> None:
        """There is an entry `number`: let the reader know, if that is news."""
        if number > self.known:
            self.known = number
            self._stirred.set()

    def stir(self) -> None:
        """Let the reader look up, though nothing came."""
        self._stirred.set()


class Live:
    """All watches of this process; they are served while `running()` lasts."""

    def __init__(self, url: str) -> None:
        """Take the server's `url`; nothing connects before the first watch."""
        self.draining = False
        # No retry: a connection made anew has another client id, and would block where nobody can reach it.
        self._redis = address.async_client(url, retries=0, single_connection=True, **CONNECTION)
        self._watches: dict[str, list[Watch]] = {}
        self._asked: dict[str, int] = {}  # the streams that the last XREAD asked for, and behind which entries
        self._unasked = asyncio.Event()  # there are watches that it does not serve

    @asynccontextmanager
    async def running(self, commands: Redis) -> AsyncIterator[None]:
        """Serve the watches. `commands` is another client of the same server."""
        follower = asyncio.create_task(self._follow(commands))
        try:
            yield
        finally:
            await end([follower])
            await self._redis.aclose()

    @contextmanager
    def watch(self, stream: str, *, after: int) -> Iterator[Watch]:
        """Follow `stream` from behind entry `after`, while the context lasts."""
        watch = Watch(after=after)
        self._watches.setdefault(stream, []).append(watch)
        if stream not in self._asked or after < self._asked[stream]:
            self._unasked.set()
        try:
            yield watch
        finally:
            self._watches[stream].remove(watch)
            if not self._watches[stream]:
                del self._watches[stream]

    def drain(self) -> None:
        """Tell every reader that this process ends: `draining` is true, and all look up."""
        self.draining = True
        for watches in self._watches.values():
            for watch in watches:
                watch.stir()

    async def _follow(self, commands: Redis) -> None:
        is_down = False
        while True:
            if not self._watches:
                self._asked = {}
                self._unasked.clear()
                await self._unasked.wait()
            try:
                client_id = await self._redis.client_id()
                if is_down:
                    is_down = False
                    log.info("redis answers again", streams=len(self._watches))
                while self._watches:
                    await self._listen(commands, client_id)
                    await asyncio.sleep(max(GATHER_S, len(self._asked) * GATHER_PER_STREAM_S))
            except (RedisError, OSError) as error:
                if not is_down:
                    is_down = True
                    log.warning("redis does not answer, streams wait", reason=str(error), streams=len(self._watches))
                await self._redis.aclose()
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self, commands: Redis, client_id: int) -> None:
        """Block once on all streams, or until another one is wanted; wake the watches of those that grew."""
        self._asked = {stream: min(watch.known for watch in watches) for stream, watches in self._watches.items()}
        self._unasked.clear()
        behind: dict[Any, Any] = {stream: f"{known}-0" for stream, known in self._asked.items()}
        asking: Awaitable[Any] = self._redis.xread(behind, count=1, block=BLOCK_MS)
        blocked = asyncio.ensure_future(asking)
        unasked = asyncio.create_task(self._unasked.wait())
        try:
            await asyncio.wait({blocked, unasked}, return_when=asyncio.FIRST_COMPLETED)
            while not blocked.done():
                await commands.client_unblock(client_id)
                await asyncio.wait({blocked}, timeout=UNBLOCK_AGAIN_S)
            grown = await blocked
        finally:
            await end([blocked, unasked])
        for stream, entries in grown or ():
            number = int(entries[-1][0].partition(b"-")[0])
            for watch in self._watches.get(stream.decode(), ()):
                watch.grew(number)
