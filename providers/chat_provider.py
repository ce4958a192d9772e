"""One endpoint over an SDK, asked with any number of keys: sends a request, reads the bytes in time, closes the socket.

Owns the deadlines of a call and its end. Does not know which SDK it holds, whose a key is, nor what the bytes say. All keys
share the endpoint's connections, for a key is but a header of a request: there is no client per key to keep or to close.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Protocol

import msgspec
from pydantic import SecretStr

from agent_exec.contract.completion import CompletionRequest, Usage
from agent_exec.errors import ProviderError, ProviderProtocol, ProviderTimeout, ProviderUnreachable
from providers.chat_stream import ChatStream, estimated_tokens
from providers.failure import Failures, Kinds
from providers.patience import Alarm, Patience
from providers.price import Tariff
from providers.provider import Delta, Spent
from providers.quota import Quota, read_quota
from providers.request_body import Dialect, prompt_chars, request_body
from providers.secrets import fingerprint

#: After the reason for the end comes the usage at once; a server that keeps the line open says nothing more.
LAST_WORDS_S = 5.0
#: After `[DONE]` comes the end of the body, mostly in the same packet. Read, it saves the next call a handshake.
DRAIN_S = 0.1
#: What we ask for: a stream that is packed comes in lumps, and a little of it may unpack to any amount.
IDENTITY = "identity"
#: Of a refusal's body, what is read: it is summed up in 200 characters.
MAX_REFUSAL_BYTES = 16_384
REFUSAL_S = 2.0
#: No redirect is followed, so all from here on is one.
HTTP_REFUSALS = 300
#: The SDKs want a key to be made with; each request carries its own instead.
NO_KEY = "none"


class Answer(Protocol):
    """An HTTP response whose body is still to come; the same in both versions of httpx."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The head's fields; names in any case."""
        ...

    @property
    def stream(self) -> AsyncIterable[bytes]:
        """The body as it arrives. What httpx and the SDK would do to each piece of it is undone or done by us."""
        ...

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        ...


#: Sends a body, JSON, with a key.
Ask = Callable[[bytes, SecretStr], Awaitable[Answer]]


class ChatEndpoint:
    """An SDK's client as `ask` and `close`, and the streams that it has open."""

    def __init__(
        self,
        name: str,
        *,
        ask: Ask,
        close: Callable[[], Awaitable[None]],
        dialect: Dialect,
        kinds: Kinds,
        tariff: Tariff,
        patience: Patience,
    ) -> None:
        """Take the parts; `ask` gives the answer once its head is there, and `kinds` has the exceptions of its SDK."""
        self.name = name
        self.ask = ask
        self._close = close
        self.dialect = dialect
        self.kinds = kinds
        self.tariff = tariff
        self.patience = patience
        self.closed = False
        self.answers: set[Answer] = set()

    def with_key(self, key: SecretStr) -> ChatProvider:
        """Return the provider that asks with `key`."""
        return ChatProvider(self, key)

    async def aclose(self) -> None:
        """Close every connection; streams still open break with `ProviderUnreachable`."""
        self.closed = True
        for answer in list(self.answers):
            await answer.aclose()  # wakes its reader; the end of the client does not
        await self._close()


class ChatProvider:
    """A `Provider`: an endpoint with a key."""

    def __init__(self, endpoint: ChatEndpoint, key: SecretStr) -> None:
        """Take both."""
        self.name = endpoint.name
        self.key_fingerprint = fingerprint(key)
        self._endpoint = endpoint
        self._key = key
        self._failures = Failures(endpoint.name, kinds=endpoint.kinds, secret=key)

    def worst_case(self, request: CompletionRequest) -> Usage:
        """See `Provider.worst_case`."""
        prompt_tokens = estimated_tokens(prompt_chars(request))
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=request.max_output_tokens,
            total_tokens=prompt_tokens + request.max_output_tokens,
            cost_usd=self._endpoint.tariff.cost_usd(
                request.model,
                served_as=request.model,
                prompt_tokens=prompt_tokens,
                cached_tokens=0,
                completion_tokens=request.max_output_tokens,
            ),
        )

    def stream(self, request: CompletionRequest) -> ChatCall:
        """Return a call; see `Provider.stream`."""
        return ChatCall(self._endpoint, self._key, request, failures=self._failures)


class ChatCall:
    """A `Call`."""

    def __init__(
        self, endpoint: ChatEndpoint, key: SecretStr, request: CompletionRequest, *, failures: Failures
    ) -> None:
        """Take what to ask, of whom, and the words for what goes wrong."""
        self._endpoint = endpoint
        self._key = key
        self._request = request
        self._failures = failures
        self._chat = ChatStream(
            model=request.model,
            prompt_chars=prompt_chars(request),
            failures=failures,
            tariff=endpoint.tariff,
        )
        self._stack = AsyncExitStack()
        self._started_at_s = 0.0
        #: The provider may be at work on it, or was when we left.
        self._asked = False
        self.quota: Quota | None = None

    @property
    def spent(self) -> Spent | None:
        """What was used so far; see `Call.spent`."""
        return self._chat.spent() if self._asked else None

    async def __aenter__(self) -> AsyncIterator[Delta]:
        """Ask, and wait for the head of the answer."""
        self._check_open()
        patience = self._endpoint.patience
        self._started_at_s = asyncio.get_running_loop().time()
        head_by_s = self._started_at_s + min(patience.first_token_s, patience.total_s)
        body = msgspec.json.encode(request_body(self._request, dialect=self._endpoint.dialect))
        self._asked = True
        try:
            async with asyncio.timeout_at(head_by_s):
                answer = await self._endpoint.ask(body, self._key)
        except self._failures.caught as error:
            self._asked = _is_ours(error)
            if (refusal := getattr(error, "response", None)) is not None:
                self.quota = read_quota(refusal.headers)
            raise self._translated(error) from None
        self._stack.push_async_callback(answer.aclose)
        self.quota = read_quota(answer.headers)
        self._endpoint.answers.add(answer)
        self._stack.callback(self._endpoint.answers.discard, answer)
        deltas = self._deltas(answer)
        self._stack.push_async_callback(deltas.aclose)
        return deltas

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the socket, unless the answer was read to its end."""
        if isinstance(error, ProviderError) and not isinstance(error, ProviderTimeout) and not self._chat.begun:
            self._asked = False
        await self._stack.aclose()

    async def _deltas(self, answer: Answer) -> AsyncGenerator[Delta, None]:
        """Yield what the answer's bytes say. A reader that is slow uses up the total time alone.

        Only a chunk is a sign of life: proxies keep up a stream of comments before a model that has died.
        """
        chat, patience = self._chat, self._endpoint.patience
        now_s, alarm = asyncio.get_running_loop().time, Alarm()
        end_at_s = self._started_at_s + patience.total_s
        next_at_s = self._started_at_s + patience.first_token_s
        since_s = self._started_at_s
        if (encoding := answer.headers.get("content-encoding", IDENTITY).lower()) != IDENTITY:
            raise self._failures.failure(ProviderProtocol, f"it is packed as {encoding}, which we did not ask for")
        pieces = aiter(answer.stream)
        try:
            while not chat.finished:
                self._check_open()
                piece = await alarm.wait(anext(pieces, None), until_s=min(next_at_s, end_at_s))
                if piece is None:
                    break
                chunks = chat.chunks
                for delta in chat.feed(piece):
                    yield delta
                if chat.chunks > chunks:
                    since_s = now_s()
                    next_at_s = since_s + (LAST_WORDS_S if chat.answered else patience.idle_s)
        except self._failures.caught as error:
            if not chat.answered:
                raise self._translated(error, since_s=since_s) from None
        finally:
            alarm.stop()
        for delta in chat.end():
            yield delta
        if not chat.truncated:
            with suppress(*self._failures.caught):
                async with asyncio.timeout(DRAIN_S):
                    async for _ in pieces:
                        pass

    def _check_open(self) -> None:
        # aiohttp and httpx call it a mistake of ours to go on, and raise RuntimeError.
        if self._endpoint.closed:
            raise self._failures.failure(ProviderUnreachable, "this process has closed its connections")

    def _translated(self, error: Exception, *, since_s: float | None = None) -> ProviderError:
        if not _is_ours(error):
            return self._failures.of_exception(error, now_s=time.time())
        now_s = asyncio.get_running_loop().time()
        waited_s = now_s - (self._started_at_s if since_s is None else since_s)
        said = f"no token came for {waited_s:.1f} s, {now_s - self._started_at_s:.1f} s after the request"
        return self._failures.failure(ProviderTimeout, said)


def _is_ours(error: Exception) -> bool:
    """Whether it is our own patience that ended; the SDKs and the transports raise classes of their own."""
    return type(error) is TimeoutError


async def keep_refusal_short(response: Any, *, byte_stream: Callable[[bytes], Any], kinds: Kinds) -> None:
    """Read as much of a refusal's body as is of use; a hook for httpx, whose SDKs read all of it for as long as it comes.

    A status is worth more than its body: one that breaks (as `kinds` knows it), stalls or never ends is cut, and one that
    is packed stays so. `byte_stream` is the class of httpx for bytes that are there.
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
    response.headers.pop("content-encoding", None)
    response.stream = byte_stream(bytes(body[:MAX_REFUSAL_BYTES]))
