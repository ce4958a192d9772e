"""What every handler of this process shares.

Owns opening and closing it. Does not know the routes.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from agent_exec import exposure, server
from agent_exec.callbacks.door import Door
from agent_exec.embedded import redis_url
from agent_exec.ending import end
from agent_exec.errors import StorageUnavailable
from agent_exec.events import Page
from agent_exec.script import Call
from agent_exec.settings import Settings
from agent_exec.store import Store
from api_shim.counters import Counters
from api_shim.credentials import Credentials
from api_shim.live import Live
from api_shim.open_streams import OpenStreams
from api_shim.rates import Rates

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: A caller hears within 3 s that the store does not answer (docs/promise.md); the store itself may try for longer.
STORAGE_DEADLINE_S = 2.0
#: How soon open streams end after SIGTERM.
DRAIN_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Shim:
    """One process of the shim: its settings, its store, who may come in, and what is followed live."""

    settings: Settings
    store: Store
    credentials: Credentials
    live: Live
    counters: Counters
    streams: OpenStreams
    callbacks: Door
    rates: Rates
    #: What readers of events wait for together, by tenant, execution and the sequence behind which they read.
    reads: dict[tuple[str, str, int], asyncio.Task[Page]] = field(default_factory=dict)
    uploads: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    def upload(self, tenant_id: str) -> asyncio.Lock:
        """Return what a tenant's batches are handed in under, one at a time: each is held in memory until it is stored."""
        return self.uploads.setdefault(tenant_id, asyncio.Lock())

    async def run(self, call: Call[T]) -> T:
        """Run one call of a script, or give it up in time to tell the caller.

        Raises:
            StorageUnavailable: no answer within `STORAGE_DEADLINE_S`; the call may or may not have taken effect.
        """
        try:
            async with asyncio.timeout(STORAGE_DEADLINE_S):
                return await self.store.run(call)
        except TimeoutError:
            raise StorageUnavailable(f"Redis has not answered for {STORAGE_DEADLINE_S} s.") from None


@asynccontextmanager
async def opened(settings: Settings, counters: Counters) -> AsyncIterator[Shim]:
    """Open the shim's parts. Redis may be down: nothing waits for it but readiness and those who ask."""
    exposure.check(settings)
    exposure.warn(settings)
    credentials, callbacks = Credentials(settings), Door.of_service(settings)
    url = await asyncio.to_thread(redis_url, settings)
    store, live = Store(url), Live(url)
    if credentials.lets_nobody_in:
        log.warning(
            "no API key or token lets anybody in: every request will be answered 401",
            remedy="agent-exec keys create --tenant T, with AGENT_EXEC_API_KEYS_FILE naming the file",
        )
    async with live.running(store.redis):
        duties = [asyncio.create_task(_drain_on_exit(live)), asyncio.create_task(server.inspect(store, settings))]
        try:
            streams, rates = OpenStreams(settings.api_max_streams), Rates(settings.api_requests_per_minute)
            yield Shim(settings, store, credentials, live, counters, streams, callbacks, rates)
        finally:
            await end(duties)
            await store.aclose()


async def _drain_on_exit(live: Live) -> None:
    """End open streams when the server is told to exit.

    uvicorn closes the lifespan only once its last connection is closed, so an endless stream has to hear of the signal
    in another way: from the server itself, whose method handles it.
    """
    while True:
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if getattr(server, "should_exit", False):
            live.drain()
            return
        await asyncio.sleep(DRAIN_POLL_S)
