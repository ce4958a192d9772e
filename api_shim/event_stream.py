"""The events of an execution as server-sent events: our frames, or AG-UI's events made from them.

Owns the text of the stream, and what becomes of a reader that does not read. Does not know how events are followed.

Source: WHATWG, "HTML Living Standard", section 9.2, server-sent events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

import structlog
from pydantic import BeforeValidator, Field
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_exec.errors import InvalidMessage, NotFound, Unauthorized
from agent_exec.events import Page
from agent_exec.ledger import ledger
from api_shim.ag_ui import Place, Run
from api_shim.open_streams import OpenStreams
from api_shim.operation import Asked, Parameters
from api_shim.reader import first_page, pages

log = structlog.get_logger(__name__)

MEDIA_TYPE = "text/event-stream"
#: What a dropped reader waits before it resumes.
RETRY_MS = 1_000
#: A sequence is an integer that every JSON reader can hold.
Sequence = Annotated[int, Field(ge=0, lt=2**53)]

#: The text of the server-sent events that a page comes to.
Render = Callable[[Page], str]


def _none_if_empty(value: Any) -> Any:
    """An EventSource that has seen no event has an empty last id; not all of them leave the header out."""
    return None if value == "" else value


class ResumeParameters(Parameters):
    """From where on: the header, which an EventSource sends by itself, wins over `after`."""

    last_event_id: Annotated[
        Annotated[str, Field(pattern=r"^[0-9]{1,15}(\.[0-9]{1,3})?$")] | None,
        BeforeValidator(_none_if_empty),
        Field(
            alias="Last-Event-ID",
            description="the last id seen: a sequence; of AG-UI events, which may be several for one of ours, as it came",
        ),
    ] = None
    after: Annotated[Sequence, Field(description="the last sequence seen; 0 for all events")] = 0
    format: Annotated[
        Literal["frames", "ag-ui"], Field(description="our frames, or the events of the AG-UI protocol")
    ] = "frames"

    @property
    def place(self) -> Place:
        """Behind which event, and which part of the next one, to go on."""
        return Place(self.after, 0) if self.last_event_id is None else Place.parse(self.last_event_id)


class EventStream(EventSourceResponse):
    """An SSE response that counts while it lasts, and lets go of a reader who does not read."""

    def __init__(self, content: AsyncGenerator[bytes], *, streams: OpenStreams, tenant_id: str, **options: Any) -> None:
        """Take the stream, whose it is and where it counts."""
        super().__init__(content, **options)
        self._streams = streams
        self._tenant_id = tenant_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the stream ends, the reader leaves, or `send_timeout` passes without room for more.

        Raises:
            TooManyStreams: nothing was sent: the tenant has as many as it may.
        """
        with self._streams.one_more(self._tenant_id):
            try:
                await super().__call__(scope, receive, send)
            except (
                SendTimeoutError
            ):  # pragma: no cover  tested; Python 3.11 stops tracing what a cancel has passed through
                log.warning("reader dropped, it took nothing", for_s=self.send_timeout)


async def stream(asked: Asked[ResumeParameters, None]) -> Response:
    """Follow the events of an execution. The stream ends after the terminal one; 204: nothing comes behind it any more."""
    place, is_ag_ui = asked.parameters.place, asked.parameters.format == "ag-ui"
    if place.parts and not is_ag_ui:
        raise InvalidMessage("Last-Event-ID is no sequence.")
    first = await first_page(asked.shim, asked.caller, asked.execution_id, after=place.sequence)
    if first.is_over and place.sequence == first.last_sequence:
        return Response(status_code=204, media_type=MEDIA_TYPE)  # an EventSource comes again after any other end
    render: Render = _frames
    after = place.sequence
    if is_ag_ui:  # what an event comes to depends on those before it, so all are read
        record = await asked.shim.run(ledger.look(asked.tenant_id, asked.execution_id))
        render, after = _ag_ui(Run(record.message), place), 0
        first = await first_page(asked.shim, asked.caller, asked.execution_id, after=after)
    settings = asked.shim.settings
    return EventStream(
        _chunks(asked, first, after=after, render=render),
        streams=asked.shim.streams,
        tenant_id=asked.tenant_id,
        ping=settings.api_sse_ping_s,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        send_timeout=settings.api_send_timeout_s,
    )


def _frames(page: Page) -> str:
    return "".join(f"id: {event.sequence}\nevent: {event.name}\ndata: {page.frame(event)}\n\n" for event in page.events)


def _ag_ui(run: Run, place: Place) -> Render:
    """Return what renders AG-UI's events behind `place`. They have no SSE name: their readers listen to `message`."""

    def render(page: Page) -> str:
        told = [one for event in page.events for one in run.tell(event) if one.place > place]
        return "".join(f"id: {one.place}\ndata: {one.json}\n\n" for one in told)

    return render


async def _chunks(
    asked: Asked[ResumeParameters, None], first: Page, *, after: int, render: Render
) -> AsyncGenerator[bytes]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    try:
        async with aclosing(pages(asked.shim, asked.caller, first, after=after)) as following:
            async for page in following:
                if text := render(page):
                    yield text.encode()
    except (NotFound, Unauthorized) as error:  # a reader that resumes is told by the status
        log.info("stream of events ends early", code=error.code)
