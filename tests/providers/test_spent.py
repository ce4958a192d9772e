"""What a call has used, however it ended: for each provider, over a real socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent_exec.errors import ProviderError, ProviderTimeout
from providers.catalog import Providers
from providers.provider import Call, Provider, Text
from tests.providers.asking import DONE, SOME, answering, cancelled, end_of, request
from tests.providers.wire_server import (
    TENANT,
    Exchange,
    WireServer,
    call_piece,
    chunk,
    event,
    settings_at,
    text_turn,
    usage,
)

#: Of the question, 16 characters, and of "some": four characters a token.
PROMPT, SAID = 4, 1
PROMPT_ONLY = (PROMPT, 0)


def asked(provider: Provider) -> Call:
    """Return a call that has a price at every provider."""
    return provider.stream(request(model="gpt-4o" if provider.name == "openai" else "llama-3.3-70b-versatile"))


async def ended(call: Call) -> BaseException | None:
    """Read the call to its end, or to what it raises."""
    try:
        async with call as deltas:
            async for _ in deltas:
                pass
    except ProviderError as error:
        return error
    return None


def spent(call: Call) -> tuple[int, int]:
    """Return the tokens of prompt and answer, all of them estimated and priced where the provider has prices."""
    so_far = call.spent
    assert so_far is not None
    assert so_far.estimated
    usage = so_far.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens


async def test_nothing_before_it_is_asked(provider: Provider) -> None:
    assert asked(provider).spent is None


async def test_at_every_moment_of_a_call(provider: Provider, wire: WireServer) -> None:
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(SOME)
        await go_on.wait()
        await exchange.rest(event(chunk({"content": "thing"})) + event(chunk(reason="stop")) + event(usage()) + DONE)

    wire.answer = answer
    call = asked(provider)
    async with call as deltas:
        assert spent(call) == PROMPT_ONLY
        assert await anext(deltas) == Text("some")
        assert spent(call) == (PROMPT, SAID)
        go_on.set()
        end = end_of([delta async for delta in deltas])
    assert call.spent is not None
    assert (call.spent.usage, call.spent.estimated) == (end.usage, False)
    assert end.usage.total_tokens == 27


async def test_arguments_and_thoughts_count(provider: Provider, wire: WireServer) -> None:
    deltas = [{"reasoning": "12345678"}, call_piece(0, '{"x":  1}   ', id="a", name="f")]
    wire.answer = answering(b"".join(event(chunk(delta)) for delta in deltas))
    call = asked(provider)
    assert await ended(call) is not None
    assert spent(call) == (PROMPT, 5)


async def test_the_provider_s_own_count_so_far_is_better(provider: Provider, wire: WireServer) -> None:
    running = event(chunk({"content": "some"}, usage=usage(20, 3)["usage"]))
    wire.answer = answering(running + event({"error": {"message": "oops"}}))
    call = asked(provider)
    assert await ended(call) is not None
    assert call.spent is not None
    assert (call.spent.usage.prompt_tokens, call.spent.usage.completion_tokens) == (20, 3)


@pytest.mark.parametrize("octets", [SOME, SOME + DONE, SOME + b"data: oops\n\n", SOME + event({"error": "oops"})])
async def test_an_answer_that_breaks_off(provider: Provider, wire: WireServer, octets: bytes) -> None:
    wire.answer = answering(octets)
    call = asked(provider)
    assert isinstance(await ended(call), ProviderError)
    assert spent(call) == (PROMPT, SAID)


@pytest.mark.parametrize("octets", [b"", SOME], ids=["in silence", "amid the answer"])
@pytest.mark.parametrize("limits", [{"provider_first_token_timeout_s": 0.2, "provider_idle_timeout_s": 0.2}])
async def test_a_provider_that_goes_silent(provider: Provider, wire: WireServer, octets: bytes) -> None:
    async def answer(exchange: Exchange) -> None:
        if octets:
            await exchange.start()
            await exchange.send(octets)
        await exchange.left()

    wire.answer = answer
    call = asked(provider)
    assert type(await ended(call)) is ProviderTimeout
    assert spent(call) == (PROMPT, SAID if octets else 0)


@pytest.mark.parametrize("octets", [b"", SOME], ids=["in silence", "amid the answer"])
async def test_a_call_that_is_cancelled(provider: Provider, wire: WireServer, octets: bytes) -> None:
    sent = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if octets:
            await exchange.start()
            await exchange.send(octets)
        sent.set()
        await exchange.left()

    wire.answer = answer
    call = asked(provider)
    came = asyncio.Event()

    async def read() -> None:
        async with call as deltas:
            async for _ in deltas:
                came.set()

    reading = asyncio.create_task(read())
    await (came if octets else sent).wait()
    await cancelled(reading)
    assert spent(call) == (PROMPT, SAID if octets else 0)


async def test_a_call_that_is_left_early(provider: Provider, wire: WireServer) -> None:
    wire.answer = answering(text_turn("some", "thing"))
    call = asked(provider)
    async with call as deltas:
        await anext(deltas)
    so_far = call.spent
    assert so_far is not None
    assert so_far.usage.completion_tokens > 0


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_a_refusal_costs_nothing(provider: Provider, wire: WireServer, status: int) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.refuse(status, {"message": "no"})

    wire.answer = refuse
    call = asked(provider)
    assert isinstance(await ended(call), ProviderError)
    assert call.spent is None


@pytest.mark.parametrize("octets", [event({"error": {"code": 429}}), b"<html>", b'{"error": {"code": 401}}'])
async def test_nor_does_one_within_a_stream_that_has_not_begun(
    provider: Provider, wire: WireServer, octets: bytes
) -> None:
    wire.answer = answering(octets)
    call = asked(provider)
    assert isinstance(await ended(call), ProviderError)
    assert call.spent is None


async def test_nor_what_nobody_has_heard(name: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        providers = Providers(settings_at(f"http://127.0.0.1:{closed.getsockname()[1]}", name=name))
        call = asked(await providers.named(name, tenant_id=TENANT))
        assert isinstance(await ended(call), ProviderError)
    assert call.spent is None
    await providers.aclose()


async def test_what_is_estimated_is_priced(provider: Provider, wire: WireServer) -> None:
    wire.answer = answering(SOME)
    call = asked(provider)
    assert await ended(call) is not None
    assert call.spent is not None
    cost_usd = call.spent.usage.cost_usd
    if provider.name == "local":
        assert cost_usd is None, "nobody knows what it costs"
    else:
        assert cost_usd is not None
        assert cost_usd > 0
