"""No stream, however long, takes more of our memory than an answer may: over a real socket, for each provider."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from agent_exec.errors import ProviderProtocol, ProviderRateLimited
from providers import chat_stream
from providers.call_assembly import MAX_ARGUMENTS_CHARS, MAX_CALLS
from providers.chat_stream import MAX_OUTPUT_CHARS
from providers.event_stream import MAX_EVENT_BYTES
from providers.provider import Provider, Reasoning, Text
from tests.providers.asking import LEFT_S, SOME, answering, ask, end_of, failure, request
from tests.providers.wire_server import Exchange, WireServer, call_piece, chunk, event

#: Of the wire, what the sockets and buffers of both sides hold on top of what was read.
ON_THE_WAY_BYTES = 16_777_216
#: At most: an event that is read twice over, and an answer's text at four bytes a character.
MEMORY_BYTES = 6 * MAX_EVENT_BYTES + 8 * MAX_OUTPUT_CHARS

Octets = Iterator[bytes]


class Flood:
    """An answer without an end: what of it was sent, and whether its reader has left."""

    def __init__(self, octets: Octets, *, content_type: str = "text/event-stream") -> None:
        self._octets = octets
        self._content_type = content_type
        self.sent_bytes = 0
        self.left = asyncio.Event()
        #: The client takes no more.
        self.stuck = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start(content_type=self._content_type)
        try:
            for octets in self._octets:
                sending = asyncio.ensure_future(exchange.send(octets))
                try:
                    await asyncio.wait_for(asyncio.shield(sending), LEFT_S / 2)
                except TimeoutError:
                    self.stuck.set()
                    await sending
                self.sent_bytes += len(octets)
        finally:
            self.left.set()


@pytest.fixture
def peak_bytes() -> Iterator[Callable[[], int]]:
    """Count what Python takes for the length of a test."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def text(length: int = 8_000) -> bytes:
    return event(chunk({"content": "x" * length}))


CUT: dict[str, Callable[[], Octets]] = {
    "text": lambda: itertools.repeat(text()),
    "thoughts": lambda: itertools.repeat(event(chunk({"reasoning": "x" * 8_000}))),
    "arguments": lambda: itertools.repeat(event(chunk(call_piece(0, "x" * 8_000, id="a", name="f")))),
    "calls": lambda: (event(chunk(call_piece(n, "{}", id=f"c{n}", name="f"))) for n in itertools.count()),
    "names": lambda: itertools.repeat(event(chunk(call_piece(None, "", name="f" * 8_000)))),
}
REFUSED: dict[str, Callable[[], Octets]] = {
    "a line": lambda: itertools.chain([b"data: "], itertools.repeat(b"x" * 8_000)),
    "a line of an event": lambda: itertools.repeat(b"data: " + b"x" * 8_000 + b"\n"),
    "a line of no field": lambda: itertools.repeat(b"x" * 8_000),
}
NOTHING: dict[str, Callable[[], Octets]] = {
    "comments": lambda: itertools.repeat(b": wait\n\n" * 1_000),
    "blank lines": lambda: itertools.repeat(b"\n" * 8_000),
    "chunks of nothing": lambda: itertools.repeat(event({"choices": []}) * 300),
    "calls of nothing": lambda: itertools.repeat(event(chunk(call_piece(0, "", id="a", name="f"))) * 50),
    "lines that are no field": lambda: itertools.repeat(b"<p>oops</p>\n" * 600),
}


@pytest.mark.parametrize("case", CUT)
async def test_an_endless_answer_is_cut(
    provider: Provider, wire: WireServer, case: str, peak_bytes: Callable[[], int]
) -> None:
    """F36."""
    wire.answer = flood = Flood(CUT[case]())
    deltas = await ask(provider)
    end = end_of(deltas)
    assert (end.reason, end.truncated) == ("length", True)
    assert sum(len(delta.text) for delta in deltas if isinstance(delta, Text | Reasoning)) <= MAX_OUTPUT_CHARS
    assert len(end.tool_calls) <= MAX_CALLS
    assert all(len(call.arguments) <= MAX_ARGUMENTS_CHARS for call in end.tool_calls)
    await bounded(flood, peak_bytes)


@pytest.mark.parametrize("case", REFUSED)
async def test_an_endless_event_is_refused(
    provider: Provider, wire: WireServer, case: str, peak_bytes: Callable[[], int]
) -> None:
    wire.answer = flood = Flood(REFUSED[case]())
    error = await failure(provider)
    assert type(error) is ProviderProtocol
    assert len(str(error)) < 400
    await bounded(flood, peak_bytes)


@pytest.mark.parametrize("case", NOTHING)
async def test_an_endless_stream_of_nothing_is_cut(
    provider: Provider,
    wire: WireServer,
    case: str,
    peak_bytes: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F36."""
    monkeypatch.setattr(chat_stream, "MAX_STREAM_BYTES", 1_000_000)
    wire.answer = flood = Flood(NOTHING[case]())
    assert end_of(await ask(provider)).truncated
    await bounded(flood, peak_bytes)


async def bounded(flood: Flood, peak_bytes: Callable[[], int]) -> None:
    await asyncio.wait_for(flood.left.wait(), LEFT_S)
    assert flood.sent_bytes <= 4 * MAX_OUTPUT_CHARS + ON_THE_WAY_BYTES
    assert peak_bytes() <= MEMORY_BYTES


async def test_a_reader_that_stops_stops_the_server(
    provider: Provider, wire: WireServer, peak_bytes: Callable[[], int]
) -> None:
    wire.answer = flood = Flood(itertools.repeat(text(64)))
    async with provider.stream(request()) as deltas:
        assert await anext(deltas) == Text("x" * 64)
        await flood.stuck.wait()
        assert flood.sent_bytes <= ON_THE_WAY_BYTES
        assert peak_bytes() <= MEMORY_BYTES
    await asyncio.wait_for(flood.left.wait(), LEFT_S)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd"])
async def test_a_packed_answer_is_not_unpacked(provider: Provider, wire: WireServer, encoding: str) -> None:
    """S40."""
    wire.answer = answering(gzip.compress(SOME), headers={"content-encoding": encoding})
    error = await failure(provider)
    assert type(error) is ProviderProtocol
    assert f"packed as {encoding.lower()}" in str(error)


async def test_a_packed_refusal_is_not_unpacked(
    provider: Provider, wire: WireServer, peak_bytes: Callable[[], int]
) -> None:
    bomb = gzip.compress(bytes(16_000_000))
    tracemalloc.reset_peak()
    wire.answer = answering(bomb, status=429, headers={"content-encoding": "gzip", "retry-after": "3"})
    error = await failure(provider)
    assert (type(error), error.retry_after_s) == (ProviderRateLimited, 3.0)
    assert peak_bytes() <= 4_000_000


async def test_an_answer_said_to_be_as_it_is_may_be_so(provider: Provider, wire: WireServer) -> None:
    wire.answer = answering(SOME + event(chunk(reason="stop")), headers={"content-encoding": "identity"})
    assert end_of(await ask(provider)).reason == "stop"
