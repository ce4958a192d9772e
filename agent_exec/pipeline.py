"""One connection to Redis for coroutines: commands are sent together, and their replies read in order.

Owns the connection, its time limit, and the second try where it was cut. Does not know what is sent, nor who waits for which
reply. redis-py's own pipeline takes a connection from its pool for each use and puts a timer and a task round every send and
every reply: half of what a small call costs its process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_exec import address

try:
    import hiredis
except ImportError:  # the extra `service` brings it; the orchestrator's side does without
    hiredis = None  # type: ignore[assignment]  # a module or none

#: A word of a command.
Word = str | bytes | int | float


class Pipeline:
    """The connection; one exchange at a time."""

    def __init__(self, url: str, *, timeout_s: float, **options: Any) -> None:
        """Take the server's `url`, how long one exchange may take, and redis-py's options; nothing connects yet."""
        self._pool = address.async_client(url, retries=0, **options).connection_pool
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None

    async def exchange(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """Send commands and return their replies, an error of Redis's own as a value. All are sent again where the
        connection is cut meanwhile: what they do must be safe to repeat.

        Raises:
            redis.exceptions.ConnectionError: it could not be made, or was cut a second time; TimeoutError: no reply in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._try(commands)
                except address.LOST:
                    return await self._try(commands)
        except TimeoutError:
            raise RedisTimeoutError(f"no reply within {self._timeout_s:g} s") from None

    async def _try(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        if self._connection is None:
            self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's own
        connection = self._connection
        try:
            await connection.send_packed_command(_packed(connection, commands))
            return [await _reply(connection) for _ in commands]
        except BaseException:  # half of the replies may be on their way still
            await connection.disconnect(nowait=True)
            raise

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._pool.release(self._connection)
            self._connection = None
        await self._pool.aclose()


def _packed(connection: AbstractConnection, commands: Sequence[tuple[Word, ...]]) -> Iterable[bytes]:
    if hiredis is None:
        return connection.pack_commands(commands)
    pack: Any = hiredis.pack_command  # its types know commands of one word
    return [b"".join(map(pack, commands))]


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
