"""The relay benchmark's peers: the same model read by the same client, and each token passed on as it comes.

    python -m benchmarks.relay_peer reader STREAMS MODEL PACE WS          opens a WebSocket for each token
    python -m benchmarks.relay_peer reader STREAMS MODEL PACE WS REDIS    publishes; both say what CPU they have used
    python -m benchmarks.relay_peer subscriber WS REDIS                   passes on what is published, over one WebSocket

Nothing is stored, numbered or acknowledged: what is lost is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import redis.asyncio
from pydantic import SecretStr
from websockets.asyncio.client import connect

from agent_exec.contract.completion import ChatMessage, CompletionRequest
from agent_exec.settings import Settings
from providers.catalog import Providers
from providers.provider import Text

CHANNEL = "tokens"
PATIENCE_S = 60.0

Pass = Callable[[str], Awaitable[object]]


def frame(stream: int, sequence: int, token: str, *, is_final: bool = False) -> str:
    """Return a token as the user's own frame."""
    return json.dumps(
        {
            "event": "agent_response_token",
            "service": "agent-execution",
            "task_id": str(stream),
            "global_task_id": None,
            "tenant_id": "bench",
            "sequence": sequence,
            "timestamp": time.time(),
            "data": {"token": token, "is_final": is_final},
        }
    )


async def stream(number: int, providers: Providers, model: str, passes: Pass) -> None:
    """Read one answer, and pass on its tokens."""
    provider = await providers.named("openai", tenant_id="bench")
    request = CompletionRequest(
        provider="openai", model=model, messages=[ChatMessage(role="user", content="?")], tools=[]
    )
    sequence = 0
    async with provider.stream(request) as deltas:
        async for delta in deltas:
            if isinstance(delta, Text):
                sequence += 1
                await passes(frame(number, sequence, delta.text))
    await passes(frame(number, sequence + 1, "", is_final=True))


@contextlib.asynccontextmanager
async def passing(ws: str, redis_url: str | None) -> AsyncIterator[Pass]:
    """Return how a frame is passed on."""
    if redis_url is None:

        async def by_connection(text: str) -> None:
            async with connect(ws) as socket:
                await socket.send(text)

        yield by_connection
    else:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            yield lambda text: client.publish(CHANNEL, text)


async def streams(count: int, model_url: str, pace: str, ws: str, redis_url: str | None) -> None:
    """Read so many answers at once."""
    settings = Settings(
        openai_api_key=SecretStr("x"),
        openai_base_url=f"{model_url}/v1",
        provider_connect_timeout_s=PATIENCE_S,
        provider_first_token_timeout_s=PATIENCE_S,
    )
    providers = Providers(settings)
    began_s = time.process_time()
    async with passing(ws, redis_url) as passes:
        await asyncio.gather(*[stream(number, providers, pace, passes) for number in range(count)])
    print(json.dumps({"cpu_s": time.process_time() - began_s}), flush=True)
    await providers.aclose()


async def subscribe(ws: str, redis_url: str) -> None:
    """Pass on what is published, until ended."""
    async with (
        connect(ws) as socket,
        redis.asyncio.Redis.from_url(redis_url) as client,
        client.pubsub(ignore_subscribe_messages=True) as published,
    ):
        await published.subscribe(CHANNEL)
        async for message in published.listen():
            await socket.send(message["data"].decode())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["subscriber", ws_url, url]:
            asyncio.run(subscribe(ws_url, url))
        case ["reader", count, model_url, pace, ws_url, *urls]:
            asyncio.run(streams(int(count), model_url, pace, ws_url, urls[0] if urls else None))
        case _:
            sys.exit(__doc__)
