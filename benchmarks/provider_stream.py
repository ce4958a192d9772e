"""CPU per streamed token: our provider against the loop over chunks that its SDK offers.

    python -m benchmarks.provider_stream [--gap-ms 20] [--calls 200] [--rounds 3]

Both ask the same server, in a process of its own whose CPU is not counted, in turns within one run; the ratios are what
counts. Without a gap all tokens come in a burst; with one, each in a packet of its own. Owns nothing of the service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import groq
import openai
from pydantic import SecretStr

from agent_exec.contract.completion import ChatMessage, CompletionRequest
from agent_exec.settings import Settings
from providers.catalog import Providers
from providers.provider import Finished, Text

TOKENS = 200
AT_ONCE = 50
CALLS = 200
ROUNDS = 3
#: Paced streams take as long as they take: fewer of them, all at once.
PACED_CALLS, PACED_ROUNDS = 50, 2

Turn = Callable[[], Awaitable[int]]


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    """Return one event of the stream."""
    choices = [] if "usage" in more else [{"index": 0, "delta": delta, "finish_reason": more.pop("reason", None)}]
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": choices}
    return b"data: " + json.dumps(body | more).encode() + b"\n\n"


async def serve(ready: Connection, gap_s: float) -> None:
    """Answer every request with TOKENS tokens, for ever."""
    usage = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}
    pieces = [chunk({"content": f" word{n}"}) for n in range(TOKENS)]
    pieces += [chunk({}, reason="stop"), chunk({}, usage=usage) + b"data: [DONE]\n\n"]
    framed = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                writer.write(head)
                for piece in framed if gap_s else [b"".join(framed)]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(gap_s)
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve_apart(ready: Connection, gap_s: float) -> None:
    """Serve in a process of its own."""
    asyncio.run(serve(ready, gap_s))


def sdk_turn(client: openai.AsyncOpenAI | groq.AsyncGroq) -> Turn:
    """Return a turn by the SDK's own loop; Groq's knows no `stream_options`."""
    body = {"stream_options": {"include_usage": True}}

    async def turn() -> int:
        messages: Any = [{"role": "user", "content": "Say words."}]
        stream: Any = await client.chat.completions.create(
            model="gpt-4o", messages=messages, stream=True, extra_body=body
        )
        async with stream:
            deltas = [part.choices[0].delta async for part in stream if part.choices]
        text = [delta.content for delta in deltas if delta.content]
        return len(text)

    return turn


def our_turn(providers: Providers, name: str, *, model: str) -> Turn:
    """Return a turn by our provider."""
    provider = providers.named(name)
    request = CompletionRequest(provider=name, model=model, messages=[ChatMessage(role="user", content="Say words.")])

    async def turn() -> int:
        async with provider.stream(request) as stream:
            *deltas, end = [delta async for delta in stream]
        assert isinstance(end, Finished)
        text = [delta.text for delta in deltas if isinstance(delta, Text)]
        return len(text)

    return turn


async def cpu_us_per_token(turn: Turn, *, calls: int) -> float:
    """Return the CPU of this process, in microseconds per token, over `calls` turns."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            assert await turn() == TOKENS

    await one()
    started_s = time.process_time()
    await asyncio.gather(*(one() for _ in range(calls)))
    return (time.process_time() - started_s) / (calls * TOKENS) * 1e6


async def measure(port: int, *, calls: int, rounds: int) -> None:
    """Measure all in turns, `rounds` times, and print medians."""
    url = f"http://127.0.0.1:{port}"
    key = SecretStr("x")
    providers = Providers(
        Settings(openai_api_key=key, openai_base_url=f"{url}/v1", groq_api_key=key, groq_base_url=url, providers={})
    )
    sdks: dict[str, openai.AsyncOpenAI | groq.AsyncGroq] = {
        "openai SDK": openai.AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0),
        "openai SDK on aiohttp": openai.AsyncOpenAI(
            api_key="x", base_url=f"{url}/v1", max_retries=0, http_client=openai.DefaultAioHttpClient()
        ),
        "groq SDK": groq.AsyncGroq(api_key="x", base_url=url, max_retries=0),
    }
    turns = {
        **{name: sdk_turn(client) for name, client in sdks.items()},
        "ours, openai": our_turn(providers, "openai", model="gpt-4o"),
        "ours, groq": our_turn(providers, "groq", model="llama-3.3-70b-versatile"),
    }
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            taken[name].append(await cpu_us_per_token(turn, calls=calls))
    cpu_us = {name: statistics.median(figures) for name, figures in taken.items()}
    for name, figure in cpu_us.items():
        spread = f"{min(taken[name]):.1f} to {max(taken[name]):.1f}"
        print(f"{name:24} {figure:7.1f} us CPU per token   ({spread} in {rounds} rounds)")
    for ours, sdk in (
        ("ours, openai", "openai SDK"),
        ("ours, openai", "openai SDK on aiohttp"),
        ("ours, groq", "groq SDK"),
    ):
        print(f"{ours} / {sdk}: {cpu_us[ours] / cpu_us[sdk]:.3f}")
    await providers.aclose()
    for client in sdks.values():
        await client.close()


def run(arguments: Sequence[str] = ()) -> None:
    """Start the server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gap-ms", type=float, default=0.0, help="between two tokens; 0: all in a burst")
    parser.add_argument("--calls", type=int, help=f"a round; {CALLS}, or {PACED_CALLS} with a gap")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, or {PACED_ROUNDS} with a gap")
    options = parser.parse_args(arguments)
    gap_s = options.gap_ms / 1_000
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve_apart, args=(there, gap_s), daemon=True)
    server.start()
    calls, rounds = (PACED_CALLS, PACED_ROUNDS) if gap_s else (CALLS, ROUNDS)
    asyncio.run(measure(here.recv(), calls=options.calls or calls, rounds=options.rounds or rounds))
    server.terminate()


if __name__ == "__main__":
    run(sys.argv[1:])
