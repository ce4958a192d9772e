"""The events of an execution as server-sent events.

Owns the text of the stream, and what becomes of a reader that does not read. Does not know how events are followed.

Source: WHATWG, "HTML Living Standard", section 9.2, server-sent events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import structlog
from pydantic import Field
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_exec.errors import NotFound, Unauthorized
from agent_exec.events import Page
from api_shim.operation import Asked, Parameters
from api_shim.reader import first_page, pages

log = structlog.get_logger(__name__)

#: What a dropped reader waits before it resumes.
RETRY_MS = 1_000
#: A sequence is an integer that every JSON reader can hold.
Sequence = Annotated[int, Field(ge=0, lt=2**53)]


class ResumeParameters(Parameters):
    """From where on: the header, which an EventSource sends by itself, wins over `after`."""

    last_event_id: Annotated[Sequence | None, Field(alias="Last-Event-ID", description="the last sequence seen")] = None
    after: Annotated[Sequence, Field(description="the last sequence seen; 0 for all events")] = 0


class EventStream(EventSourceResponse):
    """An SSE response that lets go of a reader who does not read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the stream ends, the reader leaves, or `send_timeout` passes without room for more."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:  # pragma: no cover  tested; Python 3.11 stops tracing what a cancel has passed through
            log.warning("reader dropped, it took nothing", for_s=self.send_timeout)


async def stream(asked: Asked[ResumeParameters, None]) -> Response:
    """Follow the events of an execution; the stream ends after the terminal one."""
    wanted = asked.parameters
    after = wanted.after if wanted.last_event_id is None else wanted.last_event_id
    first = await first_page(asked.shim, asked.caller, asked.execution_id, after=after)
    return EventStream(
        _chunks(asked, first, after=after),
        ping=asked.shim.settings.api_sse_ping_s,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        send_timeout=asked.shim.settings.api_send_timeout_s,
    )


async def _chunks(asked: Asked[ResumeParameters, None], first: Page, *, after: int) -> AsyncGenerator[bytes]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    try:
        async with aclosing(pages(asked.shim, asked.caller, first, after=after)) as following:
            async for page in following:
                yield "".join(
                    f"id: {event.sequence}\nevent: {event.name}\ndata: {page.frame(event)}\n\n" for event in page.events
                ).encode()
    except (NotFound, Unauthorized) as error:  # a reader that resumes is told by the status
        log.info("stream of events ends early", code=error.code)
