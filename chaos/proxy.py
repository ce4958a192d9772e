"""A TCP proxy that breaks connections on purpose, on a thread and an event loop of its own.

Owns the faults of a network: cut, lost reply, silence, slowness. It reads as much of Redis's protocol as tells which reply
belongs to which request, and passes on what speaks anything else. Does not know what the commands mean.

    with Proxy.before(server.url) as proxy:
        store = Store(proxy.url)
        proxy.drop_replies(count=1)  # the next script takes effect, and its caller never hears of it
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

#: Commands that run a script: what takes effect in one piece.
SCRIPTS = frozenset({b"EVAL", b"EVALSHA", b"FCALL"})
#: After these the server speaks unasked: no reply belongs to a request any more.
STREAMING = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR"})
READ_BYTES = 65_536
#: A slowed connection is served this often a second.
SLICES_PER_S = 20
#: An order to the proxy's thread takes microseconds; this long, and it is dead.
ORDER_TIMEOUT_S = 10.0
#: Closing with this set resets the connection instead of ending it in good order.
LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Loss:
    """Which replies get lost: to these commands, where the request holds `about`; each `every`th, `left` times."""

    commands: frozenset[bytes]
    about: bytes
    every: int
    left: float
    seen: int = 0

    def concerns(self, command: bytes, request: bytes) -> bool:
        return command in self.commands and self.about in request

    def takes(self, reply: bytes) -> bool:
        """Say whether this reply is to be lost; one that tells of no effect (an error, a null) is not counted."""
        if self.left <= 0 or reply.startswith((b"-", b"!", b"_", b"$-1", b"*-1")):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.left -= 1
        return True


class Proxy:
    """Passes connections on to one server, until told otherwise. As a context manager: listens inside.

    Every method may be called from any thread, and returns when the fault is in place. `cut` and `half_close` strike the
    connections of this moment; the others last until they are ended, or `heal` ends them all.
    """

    def __init__(self, host: str, port: int) -> None:
        """Take the server's address; nobody connects there before the proxy's first client."""
        #: Where to connect instead; known once started.
        self.port = 0
        #: Connections taken, connections broken by the proxy, replies that it threw away.
        self.connections = 0
        self.cuts = 0
        self.dropped = 0
        self._upstream = (host, port)
        self._userinfo = ""
        self._path = "/0"
        self._losses: list[_Loss] = []
        self._black_hole = False
        self._delay_s = 0.0
        self._bytes_per_s = 0.0
        self._reset_after = 0
        self._open: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flowing = asyncio.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._started: Future[None] = Future()

    @classmethod
    def before(cls, url: str) -> Self:
        """Return a proxy before the server at a `redis://` address; `url` is that address by way of the proxy."""
        parts = urlsplit(url)
        proxy = cls(parts.hostname or "127.0.0.1", parts.port or 6379)
        proxy._userinfo = parts.netloc.rpartition("@")[0]
        proxy._path = parts.path or "/0"
        return proxy

    @property
    def url(self) -> str:
        """The server's address by way of the proxy."""
        userinfo = f"{self._userinfo}@" if self._userinfo else ""
        return f"redis://{userinfo}127.0.0.1:{self.port}{self._path}"

    def cut(self) -> None:
        """Reset every connection of this moment."""

        def strike() -> None:
            for connection in set(self._open):
                connection.reset()

        self._order(strike)

    def half_close(self) -> None:
        """End every connection of this moment towards its client alone: the server still takes what the client sends."""

        def strike() -> None:
            for connection in set(self._open):
                connection.end_replies()

        self._order(strike)

    def drop_replies(self, count: int = 1, *, commands: frozenset[bytes] = SCRIPTS, about: bytes = b"") -> None:
        """Lose the next `count` replies to `commands` whose request holds `about` (a script's digest, say).

        The request reaches the server and takes effect there; its reply is read, thrown away, and the connection reset.
        """
        self._losses.append(_Loss(commands, about, every=1, left=count))

    def cut_on(self, command: bytes, *, every: int, about: bytes = b"") -> None:
        """Lose each `every`th reply to `command` for as long as `heal` is not called, as `drop_replies` does."""
        self._losses.append(_Loss(frozenset({command.upper()}), about, every=every, left=float("inf")))

    def hold(self, seconds: float) -> None:
        """Let nothing pass for so long, in either direction; connections stay, and what was sent arrives afterwards."""

        def begin() -> None:
            self._flowing.clear()
            asyncio.get_running_loop().call_later(seconds, self._flowing.set)

        self._order(begin)

    def black_hole(self, on: bool) -> None:
        """Accept, and never answer: what is sent is gone for good.

        A connection that has met the black hole stays in it until its client gives up: a peer that vanished without a word.
        """
        self._black_hole = on

    def delay(self, seconds: float) -> None:
        """Let every piece of a reply come so much later; 0 ends it."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Let replies trickle; 0 ends it."""
        self._bytes_per_s = bytes_per_s

    def reset_after(self, reply_bytes: int) -> None:
        """Reset every connection that has brought so many bytes of replies, in the middle of one; 0 ends it."""
        self._reset_after = reply_bytes

    def heal(self) -> None:
        """End every fault that lasts; connections that are lost stay lost."""
        self._losses.clear()
        self._black_hole = False
        self._delay_s = self._bytes_per_s = self._reset_after = 0
        self._order(self._flowing.set)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._started.result(ORDER_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, and reset what is open."""
        self._order(self._stopping.set)
        self._thread.join(ORDER_TIMEOUT_S)

    def _order(self, action: Callable[[], object]) -> None:
        """Do something on the proxy's own thread, and return when it is done."""
        done: Future[None] = Future()

        def do() -> None:
            action()
            done.set_result(None)

        assert self._loop is not None, "the proxy is not running"
        self._loop.call_soon_threadsafe(do)
        done.result(ORDER_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flowing.set()
        tasks: set[asyncio.Task[None]] = set()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            connection = _Connection(self, reader, writer)
            self._open.add(connection)
            try:
                await connection.serve()
            finally:
                self._open.discard(connection)
                tasks.discard(task)

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set_result(None)
        await self._stopping.wait()
        server.close()
        for task in set(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Connection:
    """One client, and its connection to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._server: asyncio.StreamWriter | None = None
        self._requests = _Messages()
        self._replies = _Messages()
        #: For each request that is not answered: what may lose its reply.
        self._unanswered: deque[list[_Loss]] = deque()
        self._paired = True
        self._vanished = False
        self._ended = False
        self._reply_bytes = 0

    async def serve(self) -> None:
        """Pass bytes on until either side ends, or a fault does."""
        try:
            await self._proxy._flowing.wait()
            if self._proxy._black_hole:
                await self._swallow()
                return
            try:
                reader, self._server = await asyncio.open_connection(*self._proxy._upstream)
            except OSError:
                self._abort(self._writer)  # as the server's own port would
                return
            pumps = [asyncio.create_task(self._pass_requests()), asyncio.create_task(self._pass_replies(reader))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for writer in (self._writer, self._server):
                if writer is not None:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()

    def reset(self) -> None:
        """Break both sides, with what is under way."""
        self._proxy.cuts += 1
        for writer in (self._writer, self._server):
            if writer is not None:
                self._abort(writer)

    def end_replies(self) -> None:
        """Tell the client that nothing more will come."""
        self._proxy.cuts += 1
        self._ended = True
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def _swallow(self) -> None:
        while await self._reader.read(READ_BYTES):
            pass

    async def _pass_requests(self) -> None:
        assert self._server is not None
        while piece := await self._reader.read(READ_BYTES):
            await self._proxy._flowing.wait()
            if self._gone():
                await self._swallow()
                return
            if self._paired:
                for request in self._requests.whole(piece):
                    self._expect(request)
            self._server.write(piece)
            await self._server.drain()

    async def _pass_replies(self, server: asyncio.StreamReader) -> None:
        while piece := await server.read(READ_BYTES):
            await self._proxy._flowing.wait()
            if self._gone() or self._ended:
                continue
            passed: list[bytes] = []
            for reply in self._replies.whole(piece):
                if self._is_lost(reply):
                    await self._send(b"".join(passed))
                    self._proxy.dropped += 1
                    self.reset()
                    return
                passed.append(reply)
            await self._send(b"".join(passed))

    def _gone(self) -> bool:
        self._vanished = self._vanished or self._proxy._black_hole
        return self._vanished

    def _expect(self, request: bytes) -> None:
        command = _command(request)
        if command is None or command in STREAMING:
            self._paired = False
            self._replies.give_up()
            return
        self._unanswered.append([loss for loss in self._proxy._losses if loss.concerns(command, request)])

    def _is_lost(self, reply: bytes) -> bool:
        if not self._paired or reply.startswith(b">"):  # a push of protocol 3 answers nothing
            return False
        losses = self._unanswered.popleft() if self._unanswered else []
        return sum(loss.takes(reply) for loss in losses if loss in self._proxy._losses) > 0  # each counts it

    async def _send(self, piece: bytes) -> None:
        if self._proxy._delay_s:
            await asyncio.sleep(self._proxy._delay_s)
            await self._proxy._flowing.wait()
        limit = self._proxy._reset_after
        if limit and self._reply_bytes + len(piece) >= limit:
            self._writer.write(piece[: max(0, limit - self._reply_bytes)])
            await self._writer.drain()
            self.reset()
            return
        self._reply_bytes += len(piece)
        while self._proxy._bytes_per_s and piece:
            size = max(1, int(self._proxy._bytes_per_s / SLICES_PER_S))
            self._writer.write(piece[:size])
            piece = piece[size:]
            await asyncio.sleep(1 / SLICES_PER_S)
        self._writer.write(piece)
        await self._writer.drain()

    def _abort(self, writer: asyncio.StreamWriter) -> None:
        connected: socket.socket = writer.get_extra_info("socket")
        with suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        writer.transport.abort()


class _Messages:
    """Cuts a stream into whole messages of Redis's protocol (2 or 3); a stream that is none is passed on as it comes.

    Source: redis.io, "Redis serialization protocol specification".
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._missing = 1
        self._foreign = False

    def whole(self, piece: bytes) -> Iterator[bytes]:
        """Take bytes; return the messages that they complete."""
        self._buffer += piece
        while not self._foreign and self._at < len(self._buffer):
            kind = self._buffer[self._at]
            if kind not in b"$=!*~>%|+-:_,#(":
                self.give_up()
                break
            end = self._buffer.find(b"\r\n", self._at)
            if end < 0:
                return
            size, after = self._buffer[self._at + 1 : end], end + 2
            if kind in b"$=!":
                after += int(size) + 2 if int(size) >= 0 else 0
                if len(self._buffer) < after:
                    return
            elif kind in b"*~>":
                self._missing += max(0, int(size))
            elif kind in b"%|":
                self._missing += 2 * int(size) + (kind in b"|")  # attributes come before what they belong to
            self._at = after
            self._missing -= 1
            if not self._missing:
                message = bytes(self._buffer[:after])
                del self._buffer[:after]
                self._at, self._missing = 0, 1
                yield message
        if self._foreign and self._buffer:
            passed = bytes(self._buffer)
            self._buffer.clear()
            yield passed

    def give_up(self) -> None:
        """Look for no more messages: pass on what comes."""
        self._foreign = True


def _command(request: bytes) -> bytes | None:
    """Return the command of a request, in capitals; None where it is no request of Redis's protocol."""
    if not request.startswith(b"*"):
        return None
    _, _, name, *_ = request.split(b"\r\n", 3)
    return name.upper()
