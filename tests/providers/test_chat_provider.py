"""One suite over every kind of provider, against a real server on loopback that misbehaves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent_exec.contract.completion import ChatMessage
from agent_exec.contract.tool import ToolCall
from agent_exec.errors import (
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    ProviderAuth,
    ProviderBadRequest,
    ProviderError,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnreachable,
)
from providers import chat_provider, chat_stream
from providers.catalog import Providers
from providers.provider import Delta, Finished, Provider, Text
from tests.providers.asking import (
    DONE,
    LEFT_S,
    SOME,
    WEATHER,
    answering,
    ask,
    cancelled,
    failure,
    read,
    request,
    said,
)
from tests.providers.wire_server import (
    KEY,
    TENANT,
    Exchange,
    WireServer,
    chunk,
    event,
    settings_at,
    text_turn,
    tool_turn,
    usage,
)

Send = Callable[[bytes], asyncio.Event]


class TestAnswers:
    async def test_text(self, provider: Provider, wire: WireServer) -> None:
        wire.answer = answering(text_turn("Hel", "lo ", "wörld 🌍"))
        deltas = await ask(provider)
        assert said(deltas) == "Hello wörld 🌍"
        end = deltas[-1]
        assert isinstance(end, Finished)
        assert (end.reason, end.model, end.usage.total_tokens) == ("stop", "gpt-4o-2024-11-20", 27)

    async def test_a_byte_at_a_time(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            for octet in text_turn("wörld 🌍"):
                await exchange.send(bytes([octet]))
                await asyncio.sleep(0)
            await exchange.end()

        wire.answer = answer
        assert said(await ask(provider)) == "wörld 🌍"

    async def test_a_round_with_a_tool(self, provider: Provider, wire: WireServer) -> None:
        wire.answer = answering(tool_turn())
        *_, end = await ask(provider, request(tools=[WEATHER]))
        assert isinstance(end, Finished)
        assert end.reason == "tool_calls"
        assert end.tool_calls == (ToolCall(id="call_1", name="get_weather", arguments='{"city": "Lima"}'),)

        wire.answer = answering(text_turn("Sunny."))
        messages = [
            *request().messages,
            ChatMessage(role="assistant", tool_calls=list(end.tool_calls)),
            ChatMessage(role="tool", tool_call_id="call_1", content="sunny"),
        ]
        assert said(await ask(provider, request(tools=[WEATHER], messages=messages))) == "Sunny."

        first, second = wire.calls
        path = "/openai/v1/chat/completions" if provider.name == "groq" else "/v1/chat/completions"
        limit = "max_tokens" if provider.name == "local" else "max_completion_tokens"
        function = {"name": "get_weather", "arguments": '{"city": "Lima"}'}
        assert (first.path, second.path) == (path, path)
        assert first.body == {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": "Weather in Lima?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            limit: 1024,
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "get_weather", "description": "", "parameters": WEATHER.parameters},
                }
            ],
        }
        assert second.body["messages"][1:] == [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]

    async def test_the_head_of_a_request(self, provider: Provider, wire: WireServer) -> None:
        wire.answer = answering(text_turn("a"))
        await ask(provider)
        headers = wire.calls[0].headers
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["accept-encoding"] == "identity"

    async def test_a_read_stream_leaves_its_connection(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(text_turn("a"))
            await asyncio.sleep(0.01)  # the body's end comes in a packet of its own
            await exchange.end()

        wire.answer = answer
        for _ in range(5):
            await ask(provider)
        assert (len(wire.calls), wire.connections) == (5, 1)

    async def test_what_comes_after_done_is_read_and_dropped(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            for octets in (text_turn("a"), text_turn("b"), b"data: oops"):
                await exchange.send(octets)
                await asyncio.sleep(0.01)
            await exchange.end()

        wire.answer = answer
        assert [said(await ask(provider)) for _ in range(2)] == ["a", "a"]
        assert wire.connections == 1

    async def test_a_hundred_at_once(self, provider: Provider, wire: WireServer) -> None:
        everybody = asyncio.Barrier(100)

        async def answer(exchange: Exchange) -> None:
            word = exchange.call.body["messages"][0]["content"]
            await exchange.start()
            await exchange.send(event(chunk({"content": word})))
            await everybody.wait()
            await exchange.send(text_turn(word))
            await exchange.end()

        wire.answer = answer
        words = [f"word{n}" for n in range(100)]
        asked = [request(messages=[ChatMessage(role="user", content=word)]) for word in words]
        answers = await asyncio.gather(*(ask(provider, one) for one in asked))
        assert [said(deltas) for deltas in answers] == [2 * word for word in words]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "error", "ours"),
        [
            (400, {"message": "temperature", "type": "invalid_request_error"}, ProviderBadRequest),
            (400, {"message": "too long", "code": "context_length_exceeded"}, ContextTooLong),
            (400, {"message": "filtered", "code": "content_filter"}, ContentFiltered),
            (401, {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}, ProviderAuth),
            (403, {"message": "forbidden"}, ProviderAuth),
            (404, {"message": "no such model", "code": "model_not_found"}, ModelNotFound),
            (409, {"message": "conflict"}, ProviderOverloaded),
            (413, {"message": "large"}, ContextTooLong),
            (422, {"message": "unprocessable"}, ProviderBadRequest),
            (429, {"message": "slow down", "code": "rate_limit_exceeded"}, ProviderRateLimited),
            (429, {"message": "pay", "code": "insufficient_quota"}, ProviderAuth),
            (500, {"message": "oops"}, ProviderOverloaded),
            (502, "bad gateway", ProviderOverloaded),
            (503, None, ProviderOverloaded),
        ],
    )
    async def test_statuses(
        self, provider: Provider, wire: WireServer, status: int, error: Any, ours: type[ProviderError]
    ) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.refuse(status, error)

        wire.answer = answer
        raised = await failure(provider)
        assert type(raised) is ours
        assert f"({status}" in str(raised)
        assert len(wire.calls) == 1, "the SDK tried again behind our back"

    @pytest.mark.parametrize(
        ("headers", "pause_s"),
        [({"Retry-After": "20"}, 20.0), ({"retry-after-ms": "1500"}, 1.5), ({}, None)],
    )
    async def test_the_pause_asked_for(
        self, provider: Provider, wire: WireServer, headers: dict[str, str], pause_s: float | None
    ) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.refuse(429, {"message": "slow down"}, headers=headers)

        wire.answer = answer
        assert (await failure(provider)).retry_after_s == pause_s
        assert len(wire.calls) == 1

    async def test_a_redirect_is_not_followed(self, provider: Provider, wire: WireServer) -> None:
        wire.answer = answering(b"", status=302, headers={"location": f"{wire.url}/elsewhere"})
        assert type(await failure(provider)) is ProviderBadRequest
        assert len(wire.calls) == 1

    async def test_a_page_as_refusal(self, provider: Provider, wire: WireServer) -> None:
        wire.answer = answering(b"<html>" + b"x" * 100_000, status=502, content_type="text/html")
        error = await failure(provider)
        assert type(error) is ProviderOverloaded
        assert len(str(error)) < 400

    async def test_an_endless_refusal_is_cut(self, provider: Provider, wire: WireServer) -> None:
        sent = asyncio.get_running_loop().create_future()

        async def answer(exchange: Exchange) -> None:
            await exchange.start(status=401)
            octets = 0
            try:
                while True:
                    await exchange.send(b"x" * 65_536)
                    octets += 65_536
            except ConnectionError:
                sent.set_result(octets)
                raise

        wire.answer = answer
        assert type(await failure(provider)) is ProviderAuth
        # What the sockets hold on both sides comes on top of the 16 KB that are read.
        assert await asyncio.wait_for(sent, LEFT_S) < 16_777_216

    async def test_a_refusal_that_breaks_off_keeps_its_status(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start(status=401)
            await exchange.send(b'{"error": ')
            exchange.reset()

        wire.answer = answer
        assert type(await failure(provider)) is ProviderAuth

    async def test_a_refusal_that_stalls_keeps_its_status(
        self, provider: Provider, wire: WireServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start(status=429)
            await exchange.left()

        monkeypatch.setattr(chat_provider, "REFUSAL_S", 0.1)
        wire.answer = answer
        assert type(await failure(provider)) is ProviderRateLimited


class TestBrokenStreams:
    async def test_an_error_within_the_stream(self, provider: Provider, wire: WireServer) -> None:
        wire.answer = answering(SOME + event({"error": {"message": f"{KEY} is out", "code": "rate_limit_exceeded"}}))
        assert type(await failure(provider)) is ProviderRateLimited

    @pytest.mark.parametrize("more", [b"", DONE], ids=["nothing", "done"])
    async def test_an_early_end(self, provider: Provider, wire: WireServer, more: bytes) -> None:
        wire.answer = answering(SOME + more)
        assert type(await failure(provider)) is ProviderProtocol

    @pytest.mark.parametrize("octets", [b"data: oops\n\n", b"data: [1]\n\n", b"<html>Sign in</html>", b""])
    async def test_what_is_no_stream(self, provider: Provider, wire: WireServer, octets: bytes) -> None:
        wire.answer = answering(octets)
        assert type(await failure(provider)) is ProviderProtocol

    async def test_what_is_no_http(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.raw(b"220 smtp.example.org ESMTP\r\n\r\n")
            await exchange.left()

        wire.answer = answer
        assert type(await failure(provider)) is ProviderProtocol

    @pytest.mark.parametrize("how", ["reset", "close"])
    @pytest.mark.parametrize("after", ["request", "head", "chunk"])
    async def test_a_connection_that_breaks(self, provider: Provider, wire: WireServer, how: str, after: str) -> None:
        async def answer(exchange: Exchange) -> None:
            if after != "request":
                await exchange.start()
            if after == "chunk":
                await exchange.send(SOME)
                await asyncio.sleep(0.05)  # a reset overtakes what is still in the sockets
            getattr(exchange, how)()

        wire.answer = answer
        assert type(await failure(provider)) is ProviderUnreachable
        assert len(wire.calls) == 1

    async def test_a_connection_that_breaks_after_the_answer(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(SOME + event(chunk(reason="stop")) + event(usage()))
            await asyncio.sleep(0.05)
            exchange.reset()

        wire.answer = answer
        assert said(await ask(provider)) == "some"

    async def test_nobody_listens(self, name: str) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            providers = Providers(settings_at(f"http://127.0.0.1:{closed.getsockname()[1]}", name=name))
            error = await failure(await providers.named(name, tenant_id=TENANT))
        assert type(error) is ProviderUnreachable
        assert "ConnectionRefusedError" in str(error)
        await providers.aclose()

    @pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:1"])
    async def test_an_address_that_is_none(self, name: str, url: str) -> None:
        providers = Providers(settings_at(url, name=name))
        assert type(await failure(await providers.named(name, tenant_id=TENANT))) is ProviderBadRequest
        await providers.aclose()

    async def test_an_answer_too_long_is_cut(
        self, provider: Provider, wire: WireServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            try:
                while True:
                    await exchange.send(event(chunk({"content": "x" * 1_000})))
            finally:
                left.set()

        monkeypatch.setattr(chat_stream, "MAX_OUTPUT_CHARS", 10_000)
        wire.answer = answer
        deltas = await ask(provider)
        end = deltas[-1]
        assert isinstance(end, Finished)
        assert (len(said(deltas)), end.reason, end.truncated) == (10_000, "length", True)
        await asyncio.wait_for(left.wait(), LEFT_S)


class TestTimeouts:
    async def test_no_connection(self, name: str) -> None:
        """F33."""
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            queue = [socket.socket() for _ in range(4)]
            for waiting in queue:  # the kernel drops what does not fit into the queue of a listener
                waiting.setblocking(False)
                waiting.connect_ex(deaf.getsockname())
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            providers = Providers(settings_at(url, name=name, provider_connect_timeout_s=0.2))
            assert type(await failure(await providers.named(name, tenant_id=TENANT))) is ProviderTimeout
            await providers.aclose()
            for waiting in queue:
                waiting.close()

    @pytest.mark.parametrize("limits", [{"provider_first_token_timeout_s": 0.2}])
    @pytest.mark.parametrize("head", [False, True])
    async def test_no_first_byte(self, provider: Provider, wire: WireServer, head: bool) -> None:
        """F33."""
        left = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            if head:
                await exchange.start()
            await exchange.left()
            left.set()

        wire.answer = answer
        error = await failure(provider)
        assert type(error) is ProviderTimeout
        assert "no token came for 0.2 s" in str(error)
        await asyncio.wait_for(left.wait(), LEFT_S)
        assert len(wire.calls) == 1

    @pytest.mark.parametrize("limits", [{"provider_idle_timeout_s": 0.2}])
    async def test_a_stall(self, provider: Provider, wire: WireServer) -> None:
        """F33."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(SOME)
            await exchange.left()

        wire.answer = answer
        deltas: list[Delta] = []
        with pytest.raises(ProviderTimeout, match=r"no token came for 0\.2 s"):
            await read(provider, deltas.append)
        assert said(deltas) == "some"

    @pytest.mark.parametrize("limits", [{"provider_total_timeout_s": 0.3}])
    async def test_a_trickle(self, provider: Provider, wire: WireServer) -> None:
        """F33."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            while True:
                await exchange.send(b": wait\n\n")
                await asyncio.sleep(0.02)

        wire.answer = answer
        error = await failure(provider)
        assert type(error) is ProviderTimeout
        assert "0.3 s after the request" in str(error)

    @pytest.mark.parametrize("limits", [{"provider_first_token_timeout_s": 0.2, "provider_idle_timeout_s": 0.2}])
    async def test_a_slow_reader_is_not_a_stall(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(SOME)
            await asyncio.sleep(0.1)
            await exchange.send(text_turn("more"))
            await exchange.end()

        wire.answer = answer
        deltas = []
        async with provider.stream(request()) as stream:
            async for delta in stream:
                deltas.append(delta)
                await asyncio.sleep(0.3)
        assert said(deltas) == "somemore"

    async def test_a_line_kept_open_after_the_answer(
        self, provider: Provider, wire: WireServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(SOME + event(chunk(reason="stop")))
            await exchange.left()

        monkeypatch.setattr(chat_provider, "LAST_WORDS_S", 0.1)
        wire.answer = answer
        deltas = await ask(provider)
        end = deltas[-1]
        assert isinstance(end, Finished)
        assert (said(deltas), end.reason, end.usage_estimated) == ("some", "stop", True)

    async def test_a_line_kept_open_after_done(self, provider: Provider, wire: WireServer) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(text_turn("some"))
            await exchange.left()

        wire.answer = answer
        async with asyncio.timeout(LEFT_S):
            assert said(await ask(provider)) == "some"


class TestLeaving:
    @pytest.fixture
    async def send(self, wire: WireServer) -> AsyncIterator[Send]:
        """Make `wire` send some bytes and wait; the event is set when it has. In the end it must see that we left."""
        gone = asyncio.Event()

        def send(octets: bytes) -> asyncio.Event:
            sent = asyncio.Event()

            async def answer(exchange: Exchange) -> None:
                if octets:
                    await exchange.start()
                    await exchange.send(octets)
                sent.set()
                await exchange.left()
                gone.set()

            wire.answer = answer
            return sent

        yield send
        await asyncio.wait_for(gone.wait(), LEFT_S)

    @pytest.mark.parametrize("octets", [b"", b": head\n\n"], ids=["no head", "no delta"])
    async def test_a_cancel_before_a_delta(self, provider: Provider, send: Send, octets: bytes) -> None:
        sent = send(octets)
        reading = asyncio.create_task(ask(provider))
        await sent.wait()
        await cancelled(reading)

    async def test_a_cancel_while_waiting_for_more(self, provider: Provider, send: Send) -> None:
        send(SOME)
        came = asyncio.Event()
        reading = asyncio.create_task(read(provider, lambda _: came.set()))
        await came.wait()
        await cancelled(reading)

    async def test_a_cancel_within_the_reader(self, provider: Provider, send: Send) -> None:
        send(SOME)
        came = asyncio.Event()

        async def linger() -> None:
            came.set()
            await asyncio.Event().wait()

        reading = asyncio.create_task(read(provider, lambda _: linger()))
        await came.wait()
        await cancelled(reading)

    async def test_leaving_early(self, provider: Provider, send: Send) -> None:
        send(SOME)
        async with provider.stream(request()) as deltas:
            assert await anext(deltas) == Text("some")

    @pytest.mark.parametrize(
        "error", [TimeoutError("Redis"), ConnectionError("Redis"), json.JSONDecodeError("x", "", 0)]
    )
    async def test_the_reader_s_own_error_is_its_own(
        self, provider: Provider, wire: WireServer, error: Exception
    ) -> None:
        async def fail() -> None:
            raise error

        wire.answer = answering(text_turn("a"))
        with pytest.raises(type(error)) as caught:
            await read(provider, lambda _: fail())
        assert caught.value is error

    async def test_closing_the_provider_breaks_its_streams(
        self, providers: Providers, name: str, wire: WireServer
    ) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(SOME)
            await exchange.left()

        wire.answer = answer
        with pytest.raises(ProviderUnreachable):
            await read(await providers.named(name, tenant_id=TENANT), lambda _: providers.aclose())
        with pytest.raises(ProviderUnreachable):
            await ask(await providers.named(name, tenant_id=TENANT))

    @pytest.mark.parametrize("octets", [b"", b": head\n\n", SOME], ids=["no head", "no delta", "a delta"])
    async def test_closing_the_provider_ends_a_wait(
        self, providers: Providers, name: str, wire: WireServer, octets: bytes
    ) -> None:
        arrived, came = asyncio.Event(), asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            if octets:
                await exchange.start()
                await exchange.send(octets)
            arrived.set()
            await exchange.left()

        wire.answer = answer
        provider = await providers.named(name, tenant_id=TENANT)
        waiting = asyncio.create_task(read(provider, lambda _: came.set()))
        await (came if octets == SOME else arrived).wait()
        await asyncio.sleep(0)  # the reader asks for more
        await providers.aclose()
        with pytest.raises(ProviderUnreachable):
            await asyncio.wait_for(waiting, LEFT_S)
