"""The gate round real calls: what the fleet is told of each way a call may end, and what an outage of Redis costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from agent_exec import errors
from agent_exec.embedded import free_port
from agent_exec.errors import ProviderError, ProviderOverloaded, ProviderRateLimited, StorageUnavailable
from agent_exec.store import Store
from providers.catalog import Providers
from providers.gate import Gate, outcome_of
from providers.limits import Admitted, Asker, Broken, Deferred, Lane
from providers.provider import Provider
from tests.providers.asking import DONE, SOME, request
from tests.providers.played_fleet import PlayedProvider
from tests.providers.wire_server import TENANT, Exchange, WireServer, settings_at, text_turn

TOKENS = 1_000
PROBE_LEASE_S = 65.0


@pytest.fixture
def name() -> str:
    """One provider stands for all: the gate knows only the protocol."""
    return "openai"


@pytest.fixture
def gate(async_store: Store) -> Gate:
    return Gate(async_store, probe_lease_s=PROBE_LEASE_S)


@pytest.fixture
def lane(provider: Provider) -> Lane:
    return Lane(provider.name, provider.key_fingerprint, "gpt-4o")


@asynccontextmanager
async def away() -> AsyncIterator[Gate]:
    """A gate whose Redis is not there."""
    store = Store(f"redis://127.0.0.1:{free_port()}/0")
    yield Gate(store, probe_lease_s=PROBE_LEASE_S)
    await store.aclose()


def answering(**head: Any) -> Callable[[Exchange], Any]:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(text_turn("hi"), **head)

    return answer


def refusing(status: int, **headers: str) -> Callable[[Exchange], Any]:
    async def answer(exchange: Exchange) -> None:
        await exchange.refuse(status, {"message": "no"}, headers=headers)

    return answer


def told(limit: int, remaining: int) -> dict[str, str]:
    return {"x-ratelimit-limit-requests": str(limit), "x-ratelimit-remaining-requests": str(remaining)}


async def admitted(gate: Gate, lane: Lane, name: str = "step", *, tokens: int = TOKENS) -> Admitted:
    said = await gate.admit(lane, asker=Asker(TENANT, name), tokens=tokens)
    assert isinstance(said, Admitted)
    return said


async def ask(gate: Gate, lane: Lane, provider: Provider, name: str = "step") -> None:
    async with gate.passed(await admitted(gate, lane, name), provider.stream(request())) as deltas:
        assert [delta async for delta in deltas]


async def test_what_a_head_tells_bounds_the_fleet(wire: WireServer, gate: Gate, lane: Lane, provider: Provider) -> None:
    wire.answer = answering(headers=told(60, 0))
    await ask(gate, lane, provider)
    said = await gate.admit(lane, asker=Asker(TENANT, "next"), tokens=TOKENS)
    assert isinstance(said, Deferred)
    assert 0.5 < said.wait_s <= 1.0


async def test_it_is_told_before_the_answer_is_read(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    wire.answer = answering(headers=told(60, 0))
    async with gate.passed(await admitted(gate, lane), provider.stream(request())):
        assert isinstance(await gate.admit(lane, asker=Asker(TENANT, "next"), tokens=TOKENS), Deferred)


async def test_what_was_reserved_and_not_used_is_given_back(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    quota = {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": "1000"}
    wire.answer = answering(headers=quota)
    await ask(gate, lane, provider)
    await admitted(gate, lane, tokens=1_900)


async def test_a_refusal_comes_back_with_the_time_of_its_place(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    wire.answer = refusing(429, **{"retry-after": "2"}, **told(30, 0))
    with pytest.raises(ProviderRateLimited) as caught:
        await ask(gate, lane, provider)
    assert caught.value.retry_after_s is not None
    assert 3.5 < caught.value.retry_after_s <= 4.0, "the pause, and the two seconds in which the next request comes"


async def test_failures_stop_the_calls(wire: WireServer, gate: Gate, lane: Lane, provider: Provider) -> None:
    wire.answer = refusing(503)
    for _ in range(5):
        with pytest.raises(ProviderOverloaded):
            await ask(gate, lane, provider)
    assert isinstance(await gate.admit(lane, asker=Asker(TENANT, "step"), tokens=TOKENS), Broken)
    assert len(wire.calls) == 5


async def test_a_call_that_is_cancelled_closes_its_socket_and_gives_its_tokens_back(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    left = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        quota = {"x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "6000"}
        await exchange.start(headers=quota)
        await exchange.send(SOME)
        await exchange.left()
        left.set()

    async def step() -> None:
        async with gate.passed(await admitted(gate, lane, tokens=6_000), provider.stream(request())) as deltas:
            async for _ in deltas:
                streaming.set()

    wire.answer = answer
    streaming = asyncio.Event()
    task = asyncio.create_task(step())
    await streaming.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(left.wait(), 2)
    await admitted(gate, lane, tokens=5_900)


async def test_a_call_that_is_cancelled_before_it_asked_is_told_of(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    quota = {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": "1000"}
    wire.answer = answering(headers=quota)
    await ask(gate, lane, provider)
    waits = await admitted(gate, lane, tokens=2_100)
    assert waits.after_s > 0

    async def step() -> None:
        async with gate.passed(waits, provider.stream(request())):
            raise AssertionError("it is cancelled before")

    task = asyncio.create_task(step())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(wire.calls) == 1
    await admitted(gate, lane, tokens=1_900)


async def test_a_reader_that_fails_says_nothing_of_the_provider(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    wire.answer = answering()
    for _ in range(6):
        with pytest.raises(StorageUnavailable):
            async with gate.passed(await admitted(gate, lane), provider.stream(request())):
                raise StorageUnavailable("of the reader's own")
    await ask(gate, lane, provider)


async def test_while_redis_is_away_nobody_is_admitted() -> None:
    async with away() as gate:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(admitted(gate, Lane("openai", "f00d", "gpt")), 0.5)


async def test_a_redis_that_goes_away_costs_no_answer(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    wire.answer = answering(headers=told(60, 60))
    entered = await admitted(gate, lane)
    assert entered.tell_head
    async with away() as gone, gone.passed(entered, provider.stream(request())) as deltas:
        assert [delta async for delta in deltas]


async def test_nor_does_it_change_what_a_failure_is(
    wire: WireServer, gate: Gate, lane: Lane, provider: Provider
) -> None:
    wire.answer = refusing(429, **{"retry-after": "7"})
    entered = await admitted(gate, lane)
    async with away() as gone:
        with pytest.raises(ProviderRateLimited) as caught:
            async with gone.passed(entered, provider.stream(request())):
                raise AssertionError("it is refused")
    assert caught.value.retry_after_s == 7.0


def test_every_error_of_a_provider_is_something_to_the_gate() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ProviderError)]
    outcomes = {kind.code: outcome_of(kind("x", provider="openai")) for kind in kinds}
    refused = dict.fromkeys(outcomes, "refused")
    broken = dict.fromkeys(["provider_overloaded", "provider_timeout", "provider_unreachable"], "broken")
    assert outcomes == refused | broken | {"provider_rate_limited": "rate_limited"}


async def test_workers_use_what_a_provider_allows_and_are_hardly_refused(redis_url: str, wire: WireServer) -> None:
    """Four workers, real sockets, a real bucket: 20 requests a second, of which a second's worth may come at once."""
    bucket = PlayedProvider(rpm=1_200, burst_s=1.0)
    began_s = time.monotonic()
    refused = 0
    taken_s: list[float] = []

    async def answer(exchange: Exchange) -> None:
        nonlocal refused
        now_s = time.monotonic() - began_s
        if bucket.takes(TOKENS, at_s=now_s):
            taken_s.append(now_s)
            await exchange.start(headers=told(1_200, int(bucket.requests)))
            await exchange.send(SOME)
            await asyncio.sleep(0.3)
            await exchange.rest(text_turn("more") + DONE)
        else:
            refused += 1
            pause_s = str(bucket.pause_s(TOKENS))
            await exchange.refuse(
                429, {"message": "slow down"}, headers={"retry-after": pause_s, **told(1_200, int(bucket.requests))}
            )

    async def step(gate: Gate, provider: Provider, name: str) -> None:
        lane = Lane(provider.name, provider.key_fingerprint, "gpt-4o")
        while True:
            match await gate.admit(lane, asker=Asker(TENANT, name), tokens=TOKENS):
                case Deferred(wait_s) | Broken(wait_s):
                    await asyncio.sleep(wait_s)
                case entered:
                    try:
                        async with gate.passed(entered, provider.stream(request())) as deltas:
                            assert [delta async for delta in deltas]
                        return
                    except ProviderRateLimited as error:
                        await asyncio.sleep(error.retry_after_s or 0.0)

    wire.answer = answer
    async with AsyncExitStack() as stack:
        steps = []
        for worker in range(4):
            store = Store(redis_url)
            stack.push_async_callback(store.aclose)
            providers = Providers(settings_at(wire.url, name="openai"))
            stack.push_async_callback(providers.aclose)
            gate = Gate(store, probe_lease_s=PROBE_LEASE_S)
            provider = await providers.named("openai", tenant_id=TENANT)
            steps += [step(gate, provider, f"{worker}-{number}") for number in range(40)]
        await asyncio.gather(*steps)
    assert len(taken_s) == 160
    assert refused <= 5
    allowed_s = (160 - 20) / 20
    assert taken_s[-1] - taken_s[0] <= allowed_s / 0.9 + 1.0, "a second for a machine that is busy"
