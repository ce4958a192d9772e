"""One provider over an SDK: sends the request, reads the bytes in time, closes the socket.

Owns the deadlines of a call and its end. Does not know which SDK it holds, nor what the bytes say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from agent_exec.contract.completion import CompletionRequest
from agent_exec.errors import ProviderError, ProviderTimeout, ProviderUnreachable
from agent_exec.settings import Settings
from providers.chat_stream import ChatStream
from providers.failure import Failures, Kinds
from providers.price import Tariff
from providers.provider import Delta
from providers.request_body import Dialect, prompt_chars, request_body

#: After the reason for the end comes the usage at once; a server that keeps the line open says nothing more.
LAST_WORDS_S = 5.0
#: After `[DONE]` comes the end of the body, mostly in the same packet. Read, it saves the next call a handshake.
DRAIN_S = 0.1
#: Of a refusal's body, what is read: it is summed up in 200 characters.
MAX_REFUSAL_BYTES = 16_384
REFUSAL_S = 2.0
#: The SDKs follow no redirect for us, so all from here on is one.
HTTP_REFUSALS = 300
#: Streams of one process at once; the pool of steps is the bound, this one only must not be lower.
MAX_CONNECTIONS = 10_000
#: Tools run between two turns: a connection that lives through them saves a handshake.
KEEP_ALIVE_S = 60.0


class Answer(Protocol):
    """An SDK's response whose body is still to come."""

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        ...

    async def close(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        ...


Ask = Callable[[dict[str, Any]], AbstractAsyncContextManager[Answer]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, in seconds."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """Return what the settings say."""
        return cls(
            connect_s=settings.provider_connect_timeout_s,
            first_byte_s=settings.provider_first_token_timeout_s,
            idle_s=settings.provider_idle_timeout_s,
            total_s=settings.provider_total_timeout_s,
        )


class ChatProvider:
    """A `Provider` whose SDK client is `ask` and `close`."""

    def __init__(
        self,
        name: str,
        *,
        ask: Ask,
        close: Callable[[], Awaitable[None]],
        dialect: Dialect,
        failures: Failures,
        tariff: Tariff,
        patience: Patience,
    ) -> None:
        """Take the parts; `ask` sends a body and gives the answer once its head is there."""
        self.name = name
        self._ask = ask
        self._close = close
        self._dialect = dialect
        self._failures = failures
        self._tariff = tariff
        self._patience = patience
        self._closed = False
        self._answers: set[Answer] = set()

    @asynccontextmanager
    async def stream(self, request: CompletionRequest) -> AsyncGenerator[AsyncIterator[Delta], None]:
        """Ask once; see `Provider.stream`."""
        self._check_open()
        started_at_s = asyncio.get_running_loop().time()
        chat = ChatStream(
            model=request.model,
            prompt_chars=prompt_chars(request),
            failures=self._failures,
            tariff=self._tariff,
        )
        body = request_body(request, dialect=self._dialect)
        first_byte_at_s = started_at_s + min(self._patience.first_byte_s, self._patience.total_s)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(first_byte_at_s):
                    answer = await stack.enter_async_context(self._ask(body))
            except self._failures.caught as error:
                raise self._translated(error, started_at_s=started_at_s) from None
            self._answers.add(answer)
            stack.callback(self._answers.discard, answer)
            deltas = self._deltas(answer, chat, started_at_s=started_at_s)
            stack.push_async_callback(deltas.aclose)
            yield deltas

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        for answer in list(self._answers):
            await answer.close()  # wakes its reader; the end of the client does not
        await self._close()

    async def _deltas(self, answer: Answer, chat: ChatStream, *, started_at_s: float) -> AsyncGenerator[Delta, None]:
        """Yield what `chat` makes of the answer's bytes. A reader that is slow uses up the total time alone."""
        now_s = asyncio.get_running_loop().time
        end_at_s = started_at_s + self._patience.total_s
        next_at_s = started_at_s + self._patience.first_byte_s
        since_s = started_at_s
        pieces = answer.iter_bytes()
        try:
            while not chat.finished:
                self._check_open()
                async with asyncio.timeout_at(min(next_at_s, end_at_s)):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                for delta in chat.feed(piece):
                    yield delta
                since_s = now_s()
                next_at_s = since_s + (LAST_WORDS_S if chat.answered else self._patience.idle_s)
        except self._failures.caught as error:
            if not chat.answered:
                raise self._translated(error, started_at_s=started_at_s, since_s=since_s) from None
        for delta in chat.end():
            yield delta
        if not chat.truncated:
            with suppress(*self._failures.caught):
                async with asyncio.timeout(DRAIN_S):
                    async for _ in pieces:
                        pass

    def _check_open(self) -> None:
        # aiohttp and httpx call it a mistake of ours to go on, and raise RuntimeError.
        if self._closed:
            raise self._failures.failure(ProviderUnreachable, "this process has closed its connections")

    def _translated(self, error: Exception, *, started_at_s: float, since_s: float | None = None) -> ProviderError:
        if type(error) is not TimeoutError:
            return self._failures.of_exception(error, now_s=time.time())
        now_s = asyncio.get_running_loop().time()
        waited_s = now_s - (started_at_s if since_s is None else since_s)
        said = f"nothing came for {waited_s:.1f} s, {now_s - started_at_s:.1f} s after the request"
        return self._failures.failure(ProviderTimeout, said)


async def keep_refusal_short(response: Any, *, byte_stream: Callable[[bytes], Any], kinds: Kinds) -> None:
    """Read as much of a refusal's body as is of use; a hook for httpx, whose SDKs read all of it for as long as it comes.

    A status is worth more than its body: one that breaks (as `kinds` knows it), stalls or never ends is cut.
    `byte_stream` is the class of httpx for bytes that are there.
    """
    if response.status_code < HTTP_REFUSALS:
        return
    body = bytearray()
    with suppress(*kinds):
        async with asyncio.timeout(REFUSAL_S):
            async for piece in response.stream:
                body += piece
                if len(body) >= MAX_REFUSAL_BYTES:
                    break
    await response.stream.aclose()
    response.stream = byte_stream(bytes(body[:MAX_REFUSAL_BYTES]))
