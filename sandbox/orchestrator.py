"""The orchestrator: takes the notifier's frames over a WebSocket, acknowledges them, sends commands, and searches for us.

Owns the connections, the frames that came and the faults that a test asks for. Does not know what wrote a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent_exec.contract.event import Frame
from agent_exec.contract.operation import Document, Embedding, EmbeddingResult, Query, QueryResult
from sandbox.corpus import search
from sandbox.embedding import EMBEDDING_MODEL, embed
from sandbox.journal import Journal
from sandbox.neighbour import Refused, body_of, guarded, neighbour, number_in, refusal

#: With acknowledgements in bunches, the last few of a pause are not kept waiting for more frames.
ACK_QUIET_S = 0.05
#: "Try again later", the code of a server that goes away for a while (RFC 6455 registry).
CLOSE_TRY_AGAIN = 1013
MAX_WAIT_S = 30.0


class Mode(BaseModel):
    """Faults. `refuse`: handshakes get this status, and open connections are dropped; `close_after`: a connection is closed
    after so many frames, 0 at once; `silent`: frames are taken and nothing is acknowledged; `under_way`: an operation is
    answered 202 so many times under its key, and then with its result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    refuse: int | None = Field(default=None, ge=400, le=599)
    close_after: int | None = Field(default=None, ge=0)
    silent: bool = False
    under_way: int = Field(default=0, ge=0)


class Command(BaseModel):
    """What the orchestrator sends down the socket, as the contract has it."""

    model_config = ConfigDict(extra="allow")

    command: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame as it came: its text, and what of it breaks the contract, if anything does."""

    received_at_ms: int
    connection: int
    tenant_id: str
    execution_id: str
    text: str
    fault: str | None


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A frame `command_result`."""

    received_at_ms: int
    connection: int
    result: JsonValue


class Connection:
    """One open WebSocket and its acknowledgements."""

    def __init__(self, number: int, websocket: WebSocket, *, ack_every: int) -> None:
        """Take the socket; `ack_every` 0 acknowledges nothing."""
        self.number = number
        self.websocket = websocket
        self.frames = 0
        self._ack_every = ack_every
        #: The last unacknowledged event of each execution, least recent first.
        self._due: dict[str, str] = {}
        self._due_frames = 0

    @property
    def owes_ack(self) -> bool:
        """Whether a frame waits for its acknowledgement."""
        return bool(self._due)

    async def acknowledge(self, frame: Frame) -> None:
        """Count the frame, and acknowledge when the bunch is full."""
        if not self._ack_every:
            return
        self._due.pop(frame.execution_id, None)
        self._due[frame.execution_id] = frame.event_id
        self._due_frames += 1
        if self._due_frames >= self._ack_every:
            await self.flush()

    async def flush(self) -> None:
        """Acknowledge each execution's last frame; the last one sent is the connection's last."""
        due, self._due, self._due_frames = self._due, {}, 0
        for event_id in due.values():
            await self.websocket.send_text(json.dumps({"ack": event_id}))


class Orchestrator:
    """Whoever is connected, and what came."""

    def __init__(self, *, ack_every: int, show: Callable[[Frame], None] | None) -> None:
        """Acknowledge every so many frames, 0 never; `show` sees each good frame."""
        self._ack_every = ack_every
        self._show = show
        self._mode = Mode()
        self._frames: Journal[Arrival] = Journal()
        self._results: Journal[CommandResult] = Journal()
        self._connections: dict[int, Connection] = {}
        self._connected_before = 0
        self._faulty = 0
        #: How often each operation was asked for, by its key.
        self._asked: Counter[str] = Counter()

    async def task_updates(self, websocket: WebSocket) -> None:
        """Serve one connection of the notifier."""
        if self._mode.refuse is not None:
            answer = refusal(self._mode.refuse, "refused", "The orchestrator takes nobody now.")
            await websocket.send_denial_response(answer)
            return
        await websocket.accept()
        self._connected_before += 1
        connection = Connection(self._connected_before, websocket, ack_every=self._ack_every)
        self._connections[connection.number] = connection
        try:
            while not self._is_over(connection):
                await self._take(connection, await self._next_text(connection))
            await websocket.close(CLOSE_TRY_AGAIN)
        except WebSocketDisconnect:
            pass
        finally:
            del self._connections[connection.number]

    async def frames(self, request: Request) -> JSONResponse:
        """The frames past `after`, of a `tenant` and an `execution` if given; waits up to `wait_s` for the first."""
        fits = partial(
            _is_of, tenant_id=request.query_params.get("tenant"), execution_id=request.query_params.get("execution")
        )
        arrivals = await self._frames.wait_after(
            int(number_in(request, "after")), within_s=min(number_in(request, "wait_s"), MAX_WAIT_S), fits=fits
        )
        shown = [
            {
                "number": number,
                "connection": arrival.connection,
                "received_at_ms": arrival.received_at_ms,
                "frame": _parsed(arrival.text),
                "fault": arrival.fault,
            }
            for number, arrival in arrivals
        ]
        return JSONResponse({"last": self._frames.last, "faulty": self._faulty, "frames": shown})

    async def command_results(self, request: Request) -> JSONResponse:
        """The answers to commands past `after`; waits up to `wait_s` for the first."""
        results = await self._results.wait_after(
            int(number_in(request, "after")), within_s=min(number_in(request, "wait_s"), MAX_WAIT_S)
        )
        shown = [{"number": number, "connection": got.connection, "result": got.result} for number, got in results]
        return JSONResponse({"last": self._results.last, "results": shown})

    async def connections(self, _: Request) -> JSONResponse:
        """Who is connected now, and how many ever were."""
        return JSONResponse({"open": sorted(self._connections), "ever": self._connected_before})

    async def send(self, request: Request) -> JSONResponse:
        """Send a command down the newest connection."""
        command = await body_of(request, Command)
        if not self._connections:
            raise Refused(409, "not_connected", "No notifier is connected.")
        newest = self._connections[max(self._connections)]
        before = self._results.last
        await newest.websocket.send_text(command.model_dump_json())
        return JSONResponse({"connection": newest.number, "results_before": before})

    async def change_mode(self, request: Request) -> JSONResponse:
        """Put a new mode in place of the old; what it leaves out is off."""
        self._mode = await body_of(request, Mode)
        if self._mode.refuse is not None:
            for connection in list(self._connections.values()):
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it left in the same moment
                    await connection.websocket.close(CLOSE_TRY_AGAIN)
        return JSONResponse(self._mode.model_dump())

    async def query(self, request: Request) -> JSONResponse:
        """Search the handbook on behalf of an agent."""
        asked = await body_of(request, Query)
        if self._is_under_way(request):
            return JSONResponse({}, status_code=202, headers={"retry-after": "1"})
        documents = [
            Document(
                id=hit.passage.id,
                text=hit.passage.text,
                score=hit.score,
                metadata={"title": hit.passage.title, "topic": hit.passage.topic},
            )
            for hit in search(asked.query, top_k=asked.top_k, filters=asked.filters)
        ]
        return JSONResponse(QueryResult(documents=documents).model_dump())

    async def embedding(self, request: Request) -> JSONResponse:
        """Embed texts on behalf of an agent."""
        asked = await body_of(request, Embedding)
        if self._is_under_way(request):
            return JSONResponse({}, status_code=202, headers={"retry-after": "1"})
        vectors = [embed(text) for text in asked.texts]
        return JSONResponse(EmbeddingResult(model=EMBEDDING_MODEL, embeddings=vectors).model_dump())

    async def operations(self, _: Request) -> JSONResponse:
        """How often each operation was asked for, by its key."""
        return JSONResponse(self._asked)

    def _is_under_way(self, request: Request) -> bool:
        key = request.headers.get("idempotency-key", "")
        self._asked[key] += 1
        return self._asked[key] <= self._mode.under_way

    def _is_over(self, connection: Connection) -> bool:
        return self._mode.close_after is not None and connection.frames >= self._mode.close_after

    async def _next_text(self, connection: Connection) -> str:
        """Return the next message, with the acknowledgements that are due sent in the first quiet moment before it."""
        if connection.owes_ack and not self._mode.silent:
            try:
                async with asyncio.timeout(ACK_QUIET_S):
                    return await _received(connection.websocket)
            except TimeoutError:
                await connection.flush()
        return await _received(connection.websocket)

    async def _take(self, connection: Connection, text: str) -> None:
        received_at_ms = time.time_ns() // 1_000_000
        try:
            frame = Frame.model_validate_json(text)
        except ValidationError as error:
            self._take_other(connection, text, received_at_ms, error)
            return
        connection.frames += 1
        self._frames.add(
            Arrival(received_at_ms, connection.number, frame.tenant_id, frame.execution_id, text, fault=None)
        )
        if self._show is not None:
            self._show(frame)
        if not self._mode.silent:
            await connection.acknowledge(frame)

    def _take_other(self, connection: Connection, text: str, received_at_ms: int, error: ValidationError) -> None:
        match _parsed(text):
            case {"event": "command_result"} as result:
                self._results.add(CommandResult(received_at_ms, connection.number, result))
            case other:
                named = other if isinstance(other, dict) else {}
                tenant_id, execution_id = str(named.get("tenant_id", "")), str(named.get("execution_id", ""))
                connection.frames += 1
                self._faulty += 1
                self._frames.add(
                    Arrival(received_at_ms, connection.number, tenant_id, execution_id, text, fault=str(error))
                )


def _is_of(arrival: Arrival, *, tenant_id: str | None, execution_id: str | None) -> bool:
    return tenant_id in (None, arrival.tenant_id) and execution_id in (None, arrival.execution_id)


async def _received(websocket: WebSocket) -> str:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text = message.get("text")
    return text if text is not None else message["bytes"].decode("utf-8", "replace")  # type: ignore[no-any-return]  # ASGI


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def create_app(
    *, token: str | None = None, ack_every: int = 1, show: Callable[[Frame], None] | None = None
) -> Starlette:
    """Return the orchestrator; with a `token`, `/v1` and `/ws` ask for it."""
    orchestrator = Orchestrator(ack_every=ack_every, show=show)
    return neighbour(
        routes=[
            guarded(
                "/v1/operations",
                token=token,
                routes=[
                    Route("/query", orchestrator.query, methods=["POST"]),
                    Route("/embedding", orchestrator.embedding, methods=["POST"]),
                ],
            ),
            guarded("/ws", token=token, routes=[WebSocketRoute("/task_updates", orchestrator.task_updates)]),
            Route("/frames", orchestrator.frames),
            Route("/command-results", orchestrator.command_results),
            Route("/connections", orchestrator.connections),
            Route("/operations", orchestrator.operations),
            Route("/_send", orchestrator.send, methods=["POST"]),
            Route("/_mode", orchestrator.change_mode, methods=["POST"]),
        ]
    )
