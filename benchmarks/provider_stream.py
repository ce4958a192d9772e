"""CPU of a provider: ours against the loop over chunks that its SDK offers, a streamed token and an execution of two turns.

    python -m benchmarks.provider_stream [--gap-ms 50] [--executions 50] [--rounds 2]

All ask the same server, in a process of its own whose CPU is not counted, in turns within one run; the ratios are what
counts. A token is one of an answer of 100; an execution is a turn that asks for a tool, and one of 100 tokens. In a burst an
answer comes as fast as it is read; paced, each chunk comes in a packet of its own. Owns nothing of the service.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import groq
import openai
from pydantic import SecretStr

from agent_exec.contract.completion import ChatMessage, CompletionRequest
from agent_exec.contract.tool import ToolCall, ToolDefinition
from agent_exec.settings import Settings
from benchmarks.bare_loop import TOOLS
from benchmarks.wire import TEXT_TURN, TOKENS, TOOL, TOOL_TURN
from providers.catalog import Providers
from providers.provider import Finished, Provider, Text

#: Paced; a burst, which takes no time of its own, makes four times as many in each of as many rounds.
EXECUTIONS = 50
BURST_FACTOR = 4
ROUNDS = 2
GAP_MS = 50.0
AT_ONCE = 50
TARGET = 0.25
#: A machine that has other work to do is not what is measured.
PATIENCE_S = 60.0
BURST, PACED = "burst", "paced"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
QUESTION = "weather in Lima?"
RESULT = "sunny"

#: What one turn came to: how many pieces of text, and the calls.
Came = tuple[int, list[ToolCall]]
#: A turn after the messages so far, with tools or without.
Turn = Callable[[list[ChatMessage], bool], Awaitable[Came]]


async def serve(ready: Connection, gap_s: float) -> None:
    """Answer with a call where tools are offered and none has been called, else with text; paced below `/paced`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length))
                turn = TOOL_TURN if b'"tools"' in body and b'"tool_call_id"' not in body else TEXT_TURN
                framed = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in turn]
                writer.write(HEAD)
                if head.startswith(f"POST /{PACED}".encode()):
                    for piece in framed:
                        await asyncio.sleep(gap_s)
                        writer.write(piece)
                        await writer.drain()
                else:
                    writer.write(b"".join(framed))
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

    async def turn(so_far: list[ChatMessage], offers_tools: bool) -> Came:
        messages: Any = [plain(message) for message in so_far]
        offered: dict[str, Any] = {"tools": TOOLS} if offers_tools else {}
        stream: Any = await client.chat.completions.create(
            model="script", messages=messages, stream=True, extra_body=body, **offered
        )
        text: list[str] = []
        calls: dict[int, dict[str, str]] = {}
        async with stream:
            async for part in stream:
                if not part.choices:
                    continue
                delta = part.choices[0].delta
                if delta.content:
                    text.append(delta.content)
                for piece in delta.tool_calls or ():
                    call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "arguments": ""})
                    call["arguments"] += piece.function.arguments or ""
        return len(text), [ToolCall(**call) for call in calls.values()]

    return turn


def plain(message: ChatMessage) -> dict[str, Any]:
    """Return a message as most callers write it."""
    if message.tool_calls:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        return {"role": message.role, "tool_calls": calls}
    answers = {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
    return {"role": message.role, "content": message.content, **answers}


def our_turn(provider: Provider) -> Turn:
    """Return a turn by our provider."""
    tools = [ToolDefinition.model_validate(TOOL)]

    async def turn(so_far: list[ChatMessage], offers_tools: bool) -> Came:
        request = CompletionRequest(
            provider=provider.name, model="script", messages=so_far, tools=tools if offers_tools else []
        )
        async with provider.stream(request) as stream:
            *deltas, end = [delta async for delta in stream]
        assert isinstance(end, Finished)
        return len([delta.text for delta in deltas if isinstance(delta, Text)]), list(end.tool_calls)

    return turn


async def answer(turn: Turn) -> None:
    """Run one turn of 100 tokens."""
    assert await turn([ChatMessage(role="user", content=QUESTION)], False) == (TOKENS, [])


async def execution(turn: Turn) -> None:
    """Run a turn that asks for a tool, and one that answers from what it gave."""
    messages = [ChatMessage(role="user", content=QUESTION)]
    tokens, calls = await turn(messages, True)
    assert (tokens, len(calls)) == (0, 1)
    results = [ChatMessage(role="tool", tool_call_id=call.id, content=RESULT) for call in calls]
    messages += [ChatMessage(role="assistant", tool_calls=calls), *results]
    assert await turn(messages, True) == (TOKENS, [])


async def cpu_s(run: Callable[[Turn], Awaitable[None]], turn: Turn, *, times: int) -> float:
    """Return the CPU of this process, in seconds, of one of `times` runs."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await run(turn)

    await one()
    started_s = time.process_time()
    await asyncio.gather(*(one() for _ in range(times)))
    return (time.process_time() - started_s) / times


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians of one side: CPU of a token in µs, and of an execution in ms."""

    token_us: float
    execution_ms: float


async def measure(url: str, *, times: int, rounds: int) -> dict[str, Cost]:
    """Measure all sides in turns, `rounds` times."""
    key = SecretStr("x")
    providers = Providers(
        Settings(
            openai_api_key=key,
            openai_base_url=f"{url}/v1",
            groq_api_key=key,
            groq_base_url=url,
            providers={},
            provider_connect_timeout_s=PATIENCE_S,
        )
    )
    sdks: dict[str, openai.AsyncOpenAI | groq.AsyncGroq] = {
        "openai SDK": openai.AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0, timeout=PATIENCE_S),
        "openai SDK on aiohttp": openai.AsyncOpenAI(
            api_key="x",
            base_url=f"{url}/v1",
            max_retries=0,
            timeout=PATIENCE_S,
            http_client=openai.DefaultAioHttpClient(),
        ),
        "groq SDK": groq.AsyncGroq(api_key="x", base_url=url, max_retries=0, timeout=PATIENCE_S),
    }
    turns = {
        **{name: sdk_turn(client) for name, client in sdks.items()},
        "ours, openai": our_turn(await providers.named("openai", tenant_id="bench")),
        "ours, groq": our_turn(await providers.named("groq", tenant_id="bench")),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            answer_s = await cpu_s(answer, turn, times=times)
            taken[name].append((answer_s / TOKENS * 1e6, await cpu_s(execution, turn, times=times) * 1e3))
    await providers.aclose()
    for client in sdks.values():
        await client.close()
    return {
        name: Cost(*(statistics.median(column) for column in zip(*figures, strict=True)))
        for name, figures in taken.items()
    }


def report(pace: str, costs: dict[str, Cost]) -> None:
    """Print the figures of one pace, and the ratios."""
    for name, cost in costs.items():
        print(f"  {pace}: {name:<22} {cost.token_us:7.1f} us CPU a token, {cost.execution_ms:6.2f} ms CPU an execution")
    for ours, sdk in (
        ("ours, openai", "openai SDK"),
        ("ours, openai", "openai SDK on aiohttp"),
        ("ours, groq", "groq SDK"),
    ):
        token = costs[ours].token_us / costs[sdk].token_us
        whole = costs[ours].execution_ms / costs[sdk].execution_ms
        print(f"  {pace}: {ours} / {sdk}: {token:.3f} a token, {whole:.3f} an execution")


def run(arguments: Sequence[str] = ()) -> None:
    """Start the server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gap-ms", type=float, default=GAP_MS, help="between two tokens, paced")
    parser.add_argument(
        "--executions", type=int, default=EXECUTIONS, help=f"a round; {BURST_FACTOR} times that in a burst"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve_apart, args=(there, options.gap_ms / 1_000), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    for pace, factor in ((BURST, BURST_FACTOR), (PACED, 1)):
        costs = asyncio.run(measure(f"{url}/{pace}", times=factor * options.executions, rounds=options.rounds))
        report(pace, costs)
    ratio = costs["ours, openai"].execution_ms / costs["openai SDK"].execution_ms
    print(f"  target: an execution, paced, at most {TARGET} of the SDK's: {'met' if ratio <= TARGET else 'missed'}")
    server.terminate()
    server.join()


if __name__ == "__main__":
    run(sys.argv[1:])
