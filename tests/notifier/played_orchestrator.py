"""An orchestrator to notify: a real WebSocket server that notes what it gets, and fails as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


async def until(true: Callable[[], object], *, within_s: float = 15.0) -> None:
    """Wait for a condition."""
    give_up_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < give_up_at, f"not true within {within_s} s"
        await asyncio.sleep(0.005)


@dataclass
class Orchestrator:
    """The other end. What it does is set by its fields, at any time."""

    #: Refuse the handshake with this status.
    refuses: int | None = None
    #: And name this address to go to.
    refers_to: str = ""
    #: Take this token alone, and answer 401 to others.
    token: str | None = None
    #: Accept and close at once with this code.
    slams: int | None = None
    #: Which frames it acknowledges.
    acks: Callable[[dict[str, Any]], bool] = lambda _: False
    #: Cleared: it reads nothing.
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    frames: list[dict[str, Any]] = field(default_factory=list)
    handshakes: list[Request] = field(default_factory=list)
    handshake_times: list[float] = field(default_factory=list)
    open: set[ServerConnection] = field(default_factory=set)
    url: str = ""
    #: With it, it speaks TLS.
    tls: ssl.SSLContext | None = None

    def _on_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        self.handshake_times.append(time.monotonic())
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return connection.respond(401, "who?\n")
        if self.refuses is None:
            return None
        response = connection.respond(self.refuses, "no\n")
        if self.refers_to:
            response.headers["Location"] = self.refers_to
        return response

    async def _on_connection(self, connection: ServerConnection) -> None:
        if self.slams is not None:
            await connection.close(self.slams)
            return
        self.open.add(connection)
        try:
            with suppress(ConnectionClosed):
                while True:
                    await self.reads.wait()
                    frame = json.loads(await connection.recv())
                    self.frames.append(frame)
                    if "event_id" in frame and self.acks(frame):
                        await connection.send(json.dumps({"ack": frame["event_id"]}))
        finally:
            self.open.discard(connection)

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[Server]:
        """Be up."""
        self.reads.set()
        server = await serve(
            self._on_connection,
            "127.0.0.1",
            port,
            process_request=self._on_handshake,
            ping_interval=None,
            max_size=None,
            ssl=self.tls,
        )
        self.url = (
            f"{'ws' if self.tls is None else 'wss'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/task_updates"
        )
        try:
            yield server
        finally:
            self.sever()
            server.close()
            await server.wait_closed()

    def sever(self) -> None:
        """Cut every connection as a crash would."""
        for connection in self.open:
            connection.transport.abort()

    def swallow(self) -> None:
        """Let every connection fall silent, as a proxy does that has lost its state."""
        for connection in self.open:
            connection.transport.pause_reading()

    async def say(self, message: object) -> None:
        """Say something to whoever is connected; text goes as it is."""
        await until(lambda: self.open)
        for connection in list(self.open):
            await connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def sequences(self) -> dict[str, list[int]]:
        """Return the sequence numbers got, by execution, as they came."""
        got: dict[str, list[int]] = defaultdict(list)
        for frame in self.frames:
            if "sequence" in frame:
                got[frame["execution_id"]].append(frame["sequence"])
        return got

    def results(self) -> list[dict[str, Any]]:
        """Return the answers to commands."""
        return [frame for frame in self.frames if frame["event"] == "command_result"]

    def has_all(self, execution_id: str, last: int) -> bool:
        """Tell whether every event up to `last` has come."""
        return set(range(1, last + 1)) <= set(self.sequences()[execution_id])


def in_order(sequences: list[int]) -> bool:
    """Tell whether these rise by one, but for steps back to what is sent again."""
    return sequences[0] == 1 and all(after <= before + 1 for before, after in pairwise(sequences))
