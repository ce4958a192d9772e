"""One live reader of one execution: what is stored, then what comes, without a gap and without a double.

Owns the order of reading and waiting, for SSE and WebSocket alike. Readers who stand at the same event share one read of
the store. Does not know how a page travels.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from agent_exec import events, keys
from agent_exec.api_keys import Caller
from agent_exec.errors import InvalidMessage, StorageError, Unauthorized
from agent_exec.events import Page
from api_shim.shim import Shim

#: How often a quiet reader asks again: whether its credential still holds, and whether the execution is still there.
LOOK_AGAIN_S = 2.0
STORAGE_PAUSE_S = 0.5


async def first_page(shim: Shim, caller: Caller, execution_id: str, *, after: int) -> Page:
    """Read the first page, before anything is answered.

    Raises:
        NotFound: this tenant has no such execution.
        InvalidMessage: there never was an event `after`.
    """
    page = await shim.run(events.read(caller.tenant_id, execution_id, after=after))
    if after > page.last_sequence:
        raise InvalidMessage("Last-Event-ID, or `after`, is beyond the last event of this execution.")
    return page


async def pages(shim: Shim, caller: Caller, first: Page, *, after: int) -> AsyncGenerator[Page]:
    """Yield `first` and the pages that follow it as they come, none of them empty.

    Ends after the terminal event, or when this process is about to end. A store that is away is waited for.

    Raises:
        Unauthorized: the caller's credential has expired meanwhile, or was revoked.
        NotFound: the execution has expired meanwhile.
    """
    page = first
    stream = keys.streaming(caller.tenant_id, first.execution_id)
    with shim.counters.readers.track_inprogress(), shim.live.watch(stream, after=after) as watch:
        while True:
            if page.events:
                yield page
                after = page.events[-1].sequence
            if page.is_over and after == page.last_sequence:
                return
            if after >= page.last_sequence:
                await watch.beyond(after, timeout_s=LOOK_AGAIN_S)
            if shim.live.draining:
                return
            if not shim.credentials.holds(caller):
                raise Unauthorized("The credential has expired, or was revoked.")
            try:
                page = await _shared_read(shim, caller.tenant_id, first.execution_id, after=after)
            except StorageError:
                page = replace(page, events=[])  # all that is known: nothing new
                await asyncio.sleep(STORAGE_PAUSE_S)


async def _shared_read(shim: Shim, tenant_id: str, execution_id: str, *, after: int) -> Page:
    """Read the events after `after`, or join a reader of this process who is about to get the same ones.

    What was written after that one had asked is missing from its page; whoever was woken for it looks again at once.
    """
    place = (tenant_id, execution_id, after)
    reading = shim.reads.get(place)
    if reading is None:
        reading = shim.reads[place] = asyncio.create_task(
            shim.run(events.read(tenant_id, execution_id, after=after)), name=f"read {execution_id} after {after}"
        )

        def done(read: asyncio.Task[Page]) -> None:
            del shim.reads[place]
            if not read.cancelled():
                read.exception()  # of no concern where all who waited have left

        reading.add_done_callback(done)
    return await asyncio.shield(reading)
