"""A WebSocket on one execution: the same frames as the event stream, and commands back.

Owns what may be said on the socket and how it is closed. Does not know how events are followed.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from typing import Annotated, Literal, assert_never

import structlog
from pydantic import Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent_exec.contract.approval import Approval
from agent_exec.contract.command import CommandResult
from agent_exec.contract.model import ContractModel, ExecutionId, OpaqueId
from agent_exec.ending import end
from agent_exec.errors import AgentExecError, Forbidden, InvalidMessage, NotFound, TooManyCommands, Unauthorized
from agent_exec.events import Page
from api_shim.approval import decide
from api_shim.body import check_json
from api_shim.event_stream import Sequence
from api_shim.executions import ask_for_end
from api_shim.operation import Asked, Parameters
from api_shim.problem import Refused, breach, code_of, detail_of
from api_shim.reader import first_page, pages

log = structlog.get_logger(__name__)

#: A socket that sends this many commands that are none, or come too fast, is closed.
MAX_STRIKES = 3
#: Commands that one socket may send at once, and how fast it may send more. A person clicks; a program approves the calls of
#: a turn, of which ten run at once.
BURST = 20
COMMANDS_PER_S = 5.0

CLOSE_TIMEOUT_S = 5.0

CLOSE_DONE = 1000
CLOSE_ABUSED = 1008
CLOSE_RESTARTS = 1012
CLOSE_SLOW = 1013
#: As HTTP's 401 and 404; 4000 and on are an application's own.
CLOSE_UNAUTHORIZED = 4401
CLOSE_GONE = 4404


class ConverseParameters(Parameters):
    """From where on."""

    after: Annotated[Sequence, Field(description="the last sequence seen; 0 for all events")] = 0


class CancelExecution(ContractModel):
    """Ask for the end of the execution."""

    command: Literal["cancel_execution"]
    execution_id: ExecutionId | None = None


class ResolveApproval(Approval):
    """Approve a tool call that waits for it, or reject it."""

    command: Literal["resolve_approval"]
    execution_id: ExecutionId | None = None
    tool_call_id: OpaqueId


Command = CancelExecution | ResolveApproval
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")])


async def converse(asked: Asked[ConverseParameters, None], websocket: WebSocket) -> None:
    """Follow the events of an execution on a socket, and take commands; it closes after the terminal event."""
    _check_origin(asked)
    after = asked.parameters.after
    first = await first_page(asked.shim, asked.caller, asked.execution_id, after=after)
    with asked.shim.streams.one_more(asked.tenant_id):
        await websocket.accept()
        await _converse(asked, websocket, first, after=after)


async def _converse(asked: Asked[ConverseParameters, None], websocket: WebSocket, first: Page, *, after: int) -> None:
    tasks = {
        asyncio.create_task(_send_frames(asked, websocket, first, after=after)),
        asyncio.create_task(_take_commands(asked, websocket)),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        with suppress(WebSocketDisconnect, TimeoutError):  # the other end has left, or takes nothing
            code = done.pop().result()
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await websocket.close(code)
    finally:
        await end(tasks)


async def _send_frames(asked: Asked[ConverseParameters, None], websocket: WebSocket, first: Page, *, after: int) -> int:
    """Send frames until there are no more; return the code to close with."""
    shim = asked.shim
    try:
        async with aclosing(pages(shim, asked.caller, first, after=after)) as following:
            async for page in following:
                for event in page.events:
                    async with asyncio.timeout(shim.settings.api_send_timeout_s):
                        await websocket.send_text(page.frame(event))
    except TimeoutError:
        log.warning("reader dropped, it took nothing", for_s=shim.settings.api_send_timeout_s)
        return CLOSE_SLOW
    except Unauthorized:
        return CLOSE_UNAUTHORIZED
    except NotFound:
        return CLOSE_GONE
    return CLOSE_RESTARTS if shim.live.draining else CLOSE_DONE


async def _take_commands(asked: Asked[ConverseParameters, None], websocket: WebSocket) -> int:
    """Answer commands until the socket misuses them; return the code to close with."""
    strikes, left, counted_s = 0, float(BURST), time.monotonic()
    while strikes < MAX_STRIKES:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        if not asked.shim.credentials.holds(asked.caller):
            return CLOSE_UNAUTHORIZED
        now_s = time.monotonic()
        left, counted_s = min(BURST, left + (now_s - counted_s) * COMMANDS_PER_S), now_s
        command: Command | None = None
        try:
            if left < 1:
                raise TooManyCommands(
                    f"This socket may send {COMMANDS_PER_S:g} commands a second; send it again later."
                )
            left -= 1
            command = _command(message.get("text"))
            result = await _obey(asked, command)
        except (AgentExecError, Refused) as error:
            strikes += isinstance(error, InvalidMessage | Refused | TooManyCommands)
            result = CommandResult(
                command=command.command if command is not None else None,
                execution_id=asked.execution_id,
                code=code_of(error),
                message=detail_of(error),
                tool_call_id=command.tool_call_id if isinstance(command, ResolveApproval) else None,
            )
        await websocket.send_text(result.frame())
    return CLOSE_ABUSED


def _command(text: str | None) -> Command:
    if text is None:
        raise InvalidMessage("Send commands as text.")
    check_json(text.encode())
    try:
        return _COMMAND.validate_json(text)
    except ValidationError as error:
        raise breach(error, where="command") from None


async def _obey(asked: Asked[ConverseParameters, None], command: Command) -> CommandResult:
    if command.execution_id not in (None, asked.execution_id):
        raise NotFound("This socket is another execution's.")
    match command:
        case CancelExecution():
            answer = await ask_for_end(asked.shim, asked.tenant_id, asked.execution_id)
            return CommandResult.of_cancel(answer.execution_id, answer.status)
        case ResolveApproval(approved=approved, reason=reason, tool_call_id=tool_call_id):
            await decide(asked, tool_call_id, Approval(approved=approved, reason=reason))
            return CommandResult(command=command.command, execution_id=asked.execution_id, tool_call_id=tool_call_id)
        case other:
            assert_never(other)


def _check_origin(asked: Asked[ConverseParameters, None]) -> None:
    """Refuse a browser's page from elsewhere. Programs send no Origin, or our own."""
    headers = asked.connection.headers
    origin = headers.get("origin")
    ours = (f"http://{headers.get('host')}", f"https://{headers.get('host')}")
    if origin is not None and origin not in ours and origin not in asked.shim.settings.api_allowed_origins:
        raise Forbidden("This origin may not open a socket. Operators: AGENT_EXEC_API_ALLOWED_ORIGINS.")
