"""A TCP proxy between the notifier and the orchestrator that breaks connections after so many bytes, of either direction.

Owns the cuts and the silence. It runs on the test's own loop. Does not know what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

READ_BYTES = 4_096


@dataclass
class CuttingProxy:
    """What it does is set by its fields, at any time."""

    upstream_port: int
    #: How many bytes a new connection passes on, to the orchestrator and to the notifier, before it is cut; None: all.
    lives: Callable[[], tuple[int | None, int | None]] = lambda: (None, None)
    #: Cleared: what is sent is gone, and no connection is answered; those that met this stay silent.
    passes: bool = True
    port: int = 0
    connections: int = 0
    cuts: int = 0
    _open: set[asyncio.Transport] = field(default_factory=set)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Be there."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for transport in list(self._open):
                transport.abort()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = self.lives()
        self._open.add(writer.transport)  # type: ignore[arg-type]  # a socket's transport is one
        try:
            if not self.passes:
                await self._swallow(reader)
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            self._open.add(far_writer.transport)  # type: ignore[arg-type]  # as above
            pumps = [
                asyncio.create_task(self._pass_on(reader, far_writer, there)),
                asyncio.create_task(self._pass_on(far_reader, writer, back)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                far_writer.transport.abort()
                self._open.discard(far_writer.transport)  # type: ignore[arg-type]  # as above
        finally:
            writer.transport.abort()
            self._open.discard(writer.transport)  # type: ignore[arg-type]  # as above

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, life: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while piece := await reader.read(READ_BYTES):
                if not self.passes:
                    await self._swallow(reader)
                if life is not None and passed + len(piece) > life:
                    writer.write(piece[: life - passed])
                    await writer.drain()
                    self.cuts += 1
                    return
                passed += len(piece)
                writer.write(piece)
                await writer.drain()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while await reader.read(READ_BYTES):
                pass
