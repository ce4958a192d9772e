"""Every way in which a server strays from the wire: once for each provider, whole and a byte at a time, over a real socket.

What the decoder makes of single chunks is in test_chat_stream.py; what a connection does is in test_chat_provider.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from agent_exec.contract.completion import FinishReason
from agent_exec.errors import (
    ContextTooLong,
    ProviderAuth,
    ProviderError,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderRateLimited,
)
from providers.provider import Delta, Finished, Provider, Reasoning, Text
from tests.providers.asking import DONE, SOME, answering, ask
from tests.providers.wire_server import Exchange, WireServer, call_piece, chunk, event, text_turn, tool_turn, usage

STOP = event(chunk(reason="stop"))
CALLED = event(chunk(reason="tool_calls"))
HELLO = text_turn("Hel", "lo")
LIMA = '{"city": "Lima"}'
OSLO = '{"city": "Oslo"}'


@dataclass(frozen=True)
class Answer:
    """What has to come out. An id of None stands for one of ours."""

    text: str = "Hello"
    calls: tuple[tuple[str | None, str, str], ...] = ()
    reason: FinishReason = "stop"
    thought: str = ""
    tokens: tuple[int, int, int] = (20, 7, 27)
    estimated: bool = False


def events(*deltas: dict[str, Any], reason: str | None = "tool_calls", **last: Any) -> bytes:
    """Return a stream of `deltas` and an end."""
    end = [event(chunk(reason=reason, **last))] if reason else []
    return b"".join([*(event(chunk(delta)) for delta in deltas), *end, event(usage()), DONE])


def weather(index: int | None, arguments: Any, id: str | None = None) -> dict[str, Any]:
    """Return a delta with a whole call."""
    return call_piece(index, arguments, id=id, name="get_weather")


def called(*calls: tuple[str | None, str]) -> Answer:
    return Answer("", tuple((id, "get_weather", arguments) for id, arguments in calls), "tool_calls")


RAW = json.dumps(chunk({"content": "né 🌍"}), ensure_ascii=False).encode()

ANSWERS: dict[str, tuple[bytes, Answer]] = {
    # lines and fields
    "CRLF": (HELLO.replace(b"\n", b"\r\n"), Answer()),
    "CR": (HELLO.replace(b"\n", b"\r"), Answer()),
    "comments": (b": ping\n\n" + HELLO.replace(b"\n\n", b"\n\n: ping\n\n"), Answer()),
    "no space after the colon": (HELLO.replace(b"data: ", b"data:"), Answer()),
    "no blank lines": (HELLO.replace(b"\n\n", b"\n"), Answer()),
    "byte order mark": (b"\xef\xbb\xbf" + HELLO, Answer()),
    "ids, names and retries": (HELLO.replace(b"data: {", b"id: 1\nretry: 5\nevent: message\ndata: {"), Answer()),
    "no [DONE]": (HELLO.removesuffix(DONE), Answer()),
    "no end of the last line": (HELLO.removesuffix(DONE).removesuffix(b"\n\n"), Answer()),
    "two [DONE]s, and more after them": (HELLO + DONE + HELLO + b"data: oops\n\n", Answer()),
    "split UTF-8": (b"data: " + RAW + b"\n\n" + STOP + event(usage()), Answer("né 🌍")),
    "split surrogates": (
        b"".join(event(chunk({"content": half})) for half in ("\ud83c", "\udf0d")) + STOP + event(usage()),
        Answer("🌍"),
    ),
    # chunks (B46)
    "no choices": (event({"choices": []}) + HELLO, Answer()),
    "choices null": (event({"choices": None}) + HELLO, Answer()),
    "delta null": (event({"choices": [{"index": 0, "delta": None, "finish_reason": None}]}) + HELLO, Answer()),
    "an event we do not know": (b'event: ping\ndata: {"type": "ping"}\n\n' + HELLO, Answer()),
    "reasoning": (event(chunk({"reasoning": "hm"})) + HELLO, Answer(thought="hm")),
    "reasoning_content": (event(chunk({"reasoning_content": "hm"})) + HELLO, Answer(thought="hm")),
    # reasons (B49)
    "length": (HELLO.replace(b'"stop"', b'"length"'), Answer(reason="length")),
    "content_filter": (HELLO.replace(b'"stop"', b'"content_filter"'), Answer(reason="content_filter")),
    "a refusal": (events({"refusal": "I will not."}, reason="stop"), Answer("I will not.", reason="content_filter")),
    # usage (B50, F37)
    "usage in x_groq": (
        events({"content": "Hello"}, reason="stop", x_groq={"id": "req_1", "usage": usage(9, 8)["usage"]}).replace(
            event(usage()), b""
        ),
        Answer(tokens=(9, 8, 17)),
    ),
    "usage missing": (SOME + STOP + DONE, Answer("some", tokens=(4, 1, 5), estimated=True)),
    "usage negative": (SOME + STOP + event(usage(-5, -5)) + DONE, Answer("some", tokens=(4, 1, 5), estimated=True)),
    "usage absurd": (
        SOME + STOP + event(usage(10**15, 1)) + DONE,
        Answer("some", tokens=(10_000_000, 1, 10_000_001), estimated=True),
    ),
    "usage of nothing for something": (
        events({"content": "x" * 160}, reason="stop").replace(event(usage()), event(usage(20, 0))),
        Answer("x" * 160, tokens=(20, 40, 60), estimated=True),
    ),
    # tool calls
    "a call in pieces": (tool_turn(), called(("call_1", LIMA))),
    "calls side by side": (
        events(
            call_piece(0, "", id="a", name="get_weather"),
            call_piece(1, "", id="b", name="get_weather"),
            call_piece(0, LIMA[:5]),
            call_piece(1, OSLO),
            call_piece(0, LIMA[5:]),
        ),
        called(("a", LIMA), ("b", OSLO)),
    ),
    "no index": (
        events(weather(None, LIMA[:5], "a"), call_piece(None, LIMA[5:]), weather(None, OSLO, "b")),
        called(("a", LIMA), ("b", OSLO)),
    ),
    "every index 0": (events(weather(0, LIMA, "a"), weather(0, OSLO, "b")), called(("a", LIMA), ("b", OSLO))),
    "every index 0, and no ids": (events(weather(0, LIMA), weather(0, OSLO)), called((None, LIMA), (None, OSLO))),
    "no id": (events(weather(0, LIMA)), called((None, LIMA))),
    "an id twice": (events(weather(0, LIMA, "a"), weather(1, OSLO, "a")), called(("a", LIMA), (None, OSLO))),
    "arguments as an object": (events(weather(0, {"city": "Lima"}, "a")), called(("a", LIMA))),
    "no arguments": (events(weather(0, "", "a")), called(("a", "{}"))),
    "arguments that are no JSON": (events(weather(0, "city=Lima", "a")), called(("a", "city=Lima"))),
    "stop with calls": (events(weather(0, LIMA, "a"), reason="stop"), called(("a", LIMA))),
}

FAILURES: dict[str, tuple[bytes, type[ProviderError]]] = {
    "an early end": (SOME, ProviderProtocol),
    "an early [DONE]": (SOME + DONE, ProviderProtocol),
    "nothing": (b"", ProviderProtocol),
    "data that is no JSON": (SOME + b"data: oops\n\n" + STOP, ProviderProtocol),
    "data that is no object": (SOME + b"data: [1]\n\n" + STOP, ProviderProtocol),
    "a page": (b"<html>Sign in</html>", ProviderProtocol),
    # errors within a stream (B51)
    "an error": (SOME + event({"error": {"message": "no", "type": "server_error"}}) + DONE, ProviderOverloaded),
    "an error of the rate": (event({"error": {"message": "slow", "code": 429}}) + DONE, ProviderRateLimited),
    "an error of the account": (SOME + event({"error": {"code": "insufficient_quota"}}), ProviderAuth),
    "an error as text": (SOME + event({"error": "out of memory"}), ProviderOverloaded),
    "an event named error": (SOME + b'event: error\ndata: {"code": "too_many_requests"}\n\n', ProviderRateLimited),
    "an error in x_groq": (SOME + event(chunk(x_groq={"error": "over_capacity"})), ProviderOverloaded),
    "an error as the reason": (SOME + event(chunk(reason="error")) + DONE, ProviderOverloaded),
    "an error and no stream": (json.dumps({"error": {"code": 503}}, indent=1).encode(), ProviderOverloaded),
    "a field named error": (
        SOME + b'error: {"code":400,"message":"too large","type":"exceed_context_size_error"}\n\n' + DONE,
        ContextTooLong,
    ),
}


def by_byte(octets: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for octet in octets:
            await exchange.send(bytes([octet]))
            await asyncio.sleep(0)
        await exchange.end()

    return answer


def came_to(deltas: list[Delta], expected: Answer) -> Answer:
    """Return what `deltas` come to; where `expected` takes any id, the id is None."""
    *said, end = deltas
    assert isinstance(end, Finished)
    ids = [call[0] for call in expected.calls] or [None] * len(end.tool_calls)
    assert len({call.id for call in end.tool_calls}) == len(end.tool_calls)
    return Answer(
        text="".join(delta.text for delta in said if isinstance(delta, Text)),
        calls=tuple(
            (call.id if id is not None else None, call.name, call.arguments)
            for call, id in zip(end.tool_calls, ids, strict=True)
        ),
        reason=end.reason,
        thought="".join(delta.text for delta in said if isinstance(delta, Reasoning)),
        tokens=(end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.total_tokens),
        estimated=end.usage_estimated,
    )


@pytest.mark.parametrize("case", ANSWERS)
async def test_what_is_an_answer_nevertheless(provider: Provider, wire: WireServer, case: str) -> None:
    """B46, B49, B50, F37."""
    octets, expected = ANSWERS[case]
    for wire.answer in (answering(octets), by_byte(octets)):
        assert came_to(await ask(provider), expected) == expected
    assert (len(wire.calls), wire.connections) == (2, 1), "a read stream leaves its connection"


@pytest.mark.parametrize("case", FAILURES)
async def test_what_is_no_answer(provider: Provider, wire: WireServer, case: str) -> None:
    """B46, B51, F37."""
    octets, kind = FAILURES[case]
    for number, wire.answer in enumerate((answering(octets), by_byte(octets)), start=1):
        with pytest.raises(ProviderError) as caught:
            await ask(provider)
        assert type(caught.value) is kind
        assert len(wire.calls) == number, "nobody beneath us tries again"
