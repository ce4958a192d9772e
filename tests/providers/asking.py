"""How the tests of this folder ask a provider, and have the server answer.

Owns the request that stands for any, and the failure that shows no key. Does not know what is expected of an answer.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_exec.contract.completion import ChatMessage, CompletionRequest
from agent_exec.contract.tool import ToolDefinition
from agent_exec.errors import ProviderError
from providers.provider import Delta, Finished, Provider, Text
from tests.providers.wire_server import KEY, Exchange, chunk, event

DONE = b"data: [DONE]\n\n"
SOME = event(chunk({"content": "some"}))
WEATHER = ToolDefinition(name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
#: How soon the server has to see that a stream was left.
LEFT_S = 1.0


def request(**fields: Any) -> CompletionRequest:
    messages = [ChatMessage(role="user", content="Weather in Lima?")]
    return CompletionRequest(**{"provider": "openai", "model": "gpt-4o", "messages": messages, **fields})


async def ask(provider: Provider, asked: CompletionRequest | None = None) -> list[Delta]:
    async with provider.stream(asked or request()) as deltas:
        return [delta async for delta in deltas]


async def read(provider: Provider, take: Callable[[Delta], object]) -> None:
    async with provider.stream(request()) as deltas:
        async for delta in deltas:
            if (taking := take(delta)) is not None:
                await taking  # type: ignore[misc]


def said(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, Text))


def end_of(deltas: list[Delta]) -> Finished:
    end = deltas[-1]
    assert isinstance(end, Finished)
    return end


def answering(octets: bytes, **head: Any) -> Callable[[Exchange], Awaitable[None]]:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(octets, **head)

    return answer


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def failure(provider: Provider, asked: CompletionRequest | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await ask(provider, asked)
    error = caught.value
    assert error.provider == provider.name
    assert KEY not in "".join(traceback.format_exception(error))
    return error
