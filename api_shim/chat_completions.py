"""OpenAI's Chat Completions, answered by agents: a client of theirs works with this address and one of our keys.

Owns what becomes of an execution whose caller waits for it: who leaves before the answer cancels it, unless an
Idempotency-Key says that they may come back. Does not know the wire: chat_wire.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Annotated

import anyio
import structlog
from pydantic import Field
from sse_starlette.event import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_exec import keys
from agent_exec.contract.execution import FinalResponse
from agent_exec.ending import end
from agent_exec.errors import AgentExecError, StorageError, Unauthorized
from agent_exec.ledger import ledger
from api_shim import chat_wire
from api_shim.chat_wire import ChatRequest, Failed, StreamedAnswer
from api_shim.event_stream import EventStream
from api_shim.executions import accept, ask_for_end, path_of
from api_shim.operation import IDEMPOTENCY_KEY_PATTERN, Asked, Repeatable, json_response
from api_shim.problem import Refused, problem_of
from api_shim.reader import LOOK_AGAIN_S, STORAGE_PAUSE_S, first_page, pages

log = structlog.get_logger(__name__)

#: What a stream gets, once this process ends, to say so.
FAREWELL_S = 1.0
#: Nobody reads this status; nginx's log has made it known for a caller who has left.
LEFT = 499

_RESTARTING = (
    "This server restarts. Send the request again; with the same Idempotency-Key it is the same execution, and without one "
    "a new one: this one is cancelled."
)


class ChatParameters(Repeatable):
    """How a chat is repeated safely."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            pattern=IDEMPOTENCY_KEY_PATTERN,
            description="the same key and body within 24 h name the same execution, which is not cancelled when its caller "
            "leaves: the same request gets its answer later",
        ),
    ] = None


ChatAsked = Asked[ChatParameters, ChatRequest]


async def complete_chat(asked: ChatAsked) -> Response:
    """Have an agent answer a chat, as OpenAI's Chat Completions do.

    `model` is the agent's id, the last message its query, those before it the history. `system` and `developer` messages are
    shown to the model as what the caller says, behind the agent's own instructions. Tools are the agent's and run here; a
    streamed answer has all that the agent says, also before it calls tools, its turns parted by a blank line. A caller who
    leaves cancels the execution, unless the request has an Idempotency-Key.
    """
    request = asked.body
    work = chat_wire.work_of(request)
    with asked.shim.streams.one_more(asked.tenant_id):
        key = asked.parameters.idempotency_key
        acceptance = await accept(asked.shim, asked.tenant_id, work, idempotency_key=key)
        if not request.stream:
            return await _answered(asked, acceptance.execution_id)
    return ChatStream(asked, acceptance.execution_id)


async def _answered(asked: ChatAsked, execution_id: str) -> Response:
    """Answer when the execution has ended."""
    assert isinstance(asked.connection, Request)
    async with _attended(asked, execution_id) as delivery:
        ended = asyncio.create_task(_end(asked, execution_id))
        left = asyncio.create_task(_left(asked.connection))
        try:
            await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return Response(status_code=LEFT)
            response = ended.result()
        finally:
            await end([ended, left])
        delivery.is_done = True
    headers = {"Location": path_of(execution_id)}
    if response.error is not None:
        return _failure(Failed(response.error), headers=headers)
    return json_response(chat_wire.completion_of(response), headers=headers)


async def _end(asked: ChatAsked, execution_id: str) -> FinalResponse:
    """Wait for the final response, through an outage of Redis however long.

    Raises:
        Unauthorized: the caller's credential does not hold any more.
        NotFound: the execution has expired.
        Refused: this process ends.
    """
    shim, tenant_id = asked.shim, asked.tenant_id
    with shim.live.watch(keys.responses(tenant_id, execution_id), after=0) as watch:
        while not shim.live.draining:
            if not shim.credentials.holds(asked.caller):
                raise Unauthorized("The credential has expired, or was revoked.")
            if not await watch.beyond(0, timeout_s=LOOK_AGAIN_S):
                continue
            with suppress(StorageError):
                record = await shim.run(ledger.look(tenant_id, execution_id))
                if record.response is not None:
                    return record.response
            await asyncio.sleep(STORAGE_PAUSE_S)
    raise Refused("restarting", _RESTARTING)


async def _left(request: Request) -> None:
    """Wait until the caller has left; the body is read, so there is nothing else to come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ChatStream(EventStream):
    """A streamed answer. It begins with the first piece of the text, so that what fails before has a status of its own; or,
    lest somebody on the way think that nothing comes, when it would be time for a ping.
    """

    def __init__(self, asked: ChatAsked, execution_id: str) -> None:
        """Take the request, and the execution that is to answer it."""
        settings, options = asked.shim.settings, asked.body.stream_options
        self._asked = asked
        self._execution_id = execution_id
        self._answer = StreamedAnswer(
            execution_id,
            asked.body.model,
            whole=asked.body.wants_json,
            with_usage=options is not None and bool(options.include_usage),
        )
        self._pieces = self._told()
        self._beginning: asyncio.Task[bytes] | None = None
        self._delivery = Delivery()
        super().__init__(
            self._sent(),
            streams=asked.shim.streams,
            tenant_id=asked.tenant_id,
            headers={"Location": path_of(execution_id)},
            ping=settings.api_sse_ping_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=settings.api_send_timeout_s,
            shutdown_event=anyio.Event(),
            shutdown_grace_period=FAREWELL_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the answer is complete, the caller leaves, or `send_timeout` passes without room for more."""
        async with _attended(self._asked, self._execution_id) as self._delivery, aclosing(self._pieces):
            self._beginning = asyncio.ensure_future(anext(self._pieces))
            try:
                with self._asked.shim.streams.one_more(self._asked.tenant_id):
                    await asyncio.wait({self._beginning}, timeout=self.ping_interval)
                if self._beginning.done():
                    self._beginning.result()  # or its error
                await super().__call__(scope, receive, send)
            except Failed as failure:
                self._delivery.is_done = True
                await _failure(failure)(scope, receive, send)
            finally:
                await end([self._beginning])

    async def _told(self) -> AsyncGenerator[bytes]:
        shim, caller = self._asked.shim, self._asked.caller
        first = await first_page(shim, caller, self._execution_id, after=0)
        async with aclosing(pages(shim, caller, first, after=0)) as following:
            async for page in following:
                if text := self._answer.tell(page.events):
                    yield text.encode()
        if not self._answer.is_over:
            raise Refused("restarting", _RESTARTING)

    async def _sent(self) -> AsyncGenerator[bytes]:
        assert self._beginning is not None
        try:
            yield await self._beginning
            async for piece in self._pieces:
                yield piece
            self._delivery.is_done = True
        except Failed as failure:
            yield chat_wire.error_event(chat_wire.failure_of(failure.error)[1])
            self._delivery.is_done = True
        except (AgentExecError, Refused) as error:
            yield chat_wire.error_event(chat_wire.ERRORS.of(problem_of(error))[1])


class Delivery:
    """Whether a caller got what the execution came to."""

    is_done = False


@asynccontextmanager
async def _attended(asked: ChatAsked, execution_id: str) -> AsyncIterator[Delivery]:
    """Have the execution cancelled where nobody gets its answer, and nobody may ask for it later."""
    delivery = Delivery()
    try:
        yield delivery
    finally:
        if not delivery.is_done and asked.parameters.idempotency_key is None:
            log.info("nobody waits for the answer", execution_id=execution_id)
            with suppress(AgentExecError):
                await ask_for_end(asked.shim, asked.tenant_id, execution_id)


def _failure(failure: Failed, *, headers: Mapping[str, str] | None = None) -> Response:
    status, body, further = chat_wire.failure_of(failure.error)
    return json_response(body, status=status, headers={**(headers or {}), **further})
