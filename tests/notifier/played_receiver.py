"""A receiver of callbacks: a real server on the loopback that notes what it gets, verifies it, and answers as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from standardwebhooks import Webhook

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """Return an answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {status} It", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class Arrival:
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def callback_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def body_hash(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def verify(self, secret: str) -> None:
        """Verify it with the specification's own library.

        Raises:
            WebhookVerificationError: it was not signed with this secret, or not now.
        """
        Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """The other end. `answers` says what each request gets, in pieces; an empty one hangs up."""

    answers: Callable[[Arrival], bytes] = lambda _: OK
    #: Between two bytes of an answer.
    drip_s: float = 0.0
    #: While it is not set, nothing is answered.
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    arrivals: list[Arrival] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    port: int = 0
    _busy: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=s3cret"

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
        """Serve inside of an `async with`."""
        self.may_answer.set()
        if tls is not None:
            tls.sni_callback = lambda _, name, __: self.names.append(name)
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._busy:
                task.cancel()
            await asyncio.gather(*self._busy, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._converse(reader, writer)
        finally:
            self._busy.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        arrival = Arrival(head[0], headers, body)
        self.arrivals.append(arrival)
        await self.may_answer.wait()
        said = self.answers(arrival)
        for piece in [said[at : at + 1] for at in range(len(said))] if self.drip_s else [said]:
            writer.write(piece)
            await writer.drain()
            if self.drip_s:
                await asyncio.sleep(self.drip_s)
