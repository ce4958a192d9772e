"""A provider's server on loopback that speaks the wire byte by byte, so that it can also speak it badly.

Owns HTTP/1.1 as far as the SDKs need it. Does not know what a test makes of it: each sets `answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agent_exec.settings import Settings

#: The key that every provider of these tests has; no message may hold it.
KEY = "sk-CANARY0123456789abcdef"
#: Who asks, where it does not matter.
TENANT = "acme"


@dataclass(frozen=True)
class Call:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Exchange:
    """One call and the means to answer it."""

    def __init__(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.call = call
        self._reader = reader
        self._writer = writer

    async def start(
        self, *, status: int = 200, content_type: str = "text/event-stream", headers: dict[str, str] | None = None
    ) -> None:
        """Send the head; the body follows in chunks."""
        fields = {"content-type": content_type, "transfer-encoding": "chunked", **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.raw(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode())

    async def raw(self, octets: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(octets)
        await self._writer.drain()

    async def send(self, octets: bytes) -> None:
        """Send a piece of the body."""
        await self.raw(b"%x\r\n%s\r\n" % (len(octets), octets))

    async def end(self) -> None:
        """End the body; the connection stays for the next call."""
        await self.raw(b"0\r\n\r\n")

    async def rest(self, octets: bytes) -> None:
        """Send the last of the body, and end it."""
        await self.send(octets)
        await self.end()

    async def whole(self, octets: bytes, **head: Any) -> None:
        """Send a whole answer."""
        await self.start(**head)
        if octets:
            await self.send(octets)
        await self.end()

    async def refuse(self, status: int, error: Any, *, headers: dict[str, str] | None = None) -> None:
        """Send an error as the providers write it."""
        await self.whole(
            json.dumps({"error": error}).encode(), status=status, content_type="application/json", headers=headers
        )

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def close(self) -> None:
        """End the connection without ending the body."""
        self._writer.close()

    async def left(self) -> None:
        """Return when the client has closed its side."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass


class WireServer:
    """The server; `answer` is what it does with each call."""

    def __init__(self) -> None:
        self.answer: Callable[[Exchange], Awaitable[None]] = _unset
        self.calls: list[Call] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                call = Call(request.split()[1], headers, json.loads(body))
                self.calls.append(call)
                await self.answer(Exchange(call, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _unset(exchange: Exchange) -> None:
    raise AssertionError("the test sets no answer")


@contextlib.asynccontextmanager
async def wire_server() -> AsyncIterator[WireServer]:
    """Serve on a free port until the context ends."""
    wire = WireServer()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await wire.connected(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    async with server:
        yield wire
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event(chunk: Any) -> bytes:
    """Return one event of the stream."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunk(delta: dict[str, Any] | None = None, *, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chunk as OpenAI writes it."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "gpt-4o-2024-11-20",
        "choices": [choice],
        **more,
    }


def usage(prompt: int = 20, completion: int = 7) -> dict[str, Any]:
    """Return the last chunk, which holds the usage alone."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "chatcmpl-1", "choices": [], "usage": counts}


def text_turn(*texts: str) -> bytes:
    """Return a whole stream that says `texts`."""
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in texts)]
    return b"".join(map(event, [*chunks, chunk(reason="stop"), usage()])) + b"data: [DONE]\n\n"


def call_piece(
    index: int | None, arguments: Any = "", *, id: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Return a delta with one piece of a tool call; what is None is left out."""
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    piece = {"index": index, "id": id, "type": "function" if id else None, "function": function}
    return {"tool_calls": [{key: value for key, value in piece.items() if value is not None}]}


def tool_turn(id: str = "call_1") -> bytes:
    """Return a whole stream that asks for `get_weather(city="Lima")`, in five pieces."""
    pieces = [
        call_piece(0, "", id=id, name="get_weather"),
        *(call_piece(0, part) for part in ('{"ci', 'ty": "', "Lima", '"}')),
    ]
    chunks = [chunk({"role": "assistant", "content": None}), *map(chunk, pieces), chunk(reason="tool_calls"), usage()]
    return b"".join(map(event, chunks)) + b"data: [DONE]\n\n"


def settings_at(url: str, *, name: str, **limits: Any) -> Settings:
    """Return settings with the one provider `name`, at `url`."""
    fields: dict[str, Any] = {"openai_api_key": None, "groq_api_key": None, "providers": {}, **limits}
    match name:
        case "openai":
            fields |= {"openai_api_key": KEY, "openai_base_url": f"{url}/v1"}
        case "groq":
            fields |= {"groq_api_key": KEY, "groq_base_url": url}
        case _:
            fields |= {"providers": {name: {"base_url": f"{url}/v1", "api_key": KEY}}}
    return Settings(**fields)
