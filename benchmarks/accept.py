"""Taking work in over HTTP, per core; and what an answer through the service takes longer than the provider's own.

    python -m benchmarks.accept [--requests 2000] [--callers 16] [--calls 15] [--gap-ms 5] [--rounds 3]

Accepting: 202, stored, against a small Starlette application that does `send_task` with stock Celery; both run in turn, each
with a Redis of its own and nobody to take the work. Answering: a model of 100 tokens, asked by OpenAI's client directly, and
through `POST /v1/chat/completions` (streamed and not) and `Prefer: wait`, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from openai import AsyncOpenAI

from agent_exec import api_keys
from agent_exec.embedded import free_port
from benchmarks import processes
from benchmarks.accept_peer import AGENT, TENANT
from benchmarks.processes import Server, Worker

READY_S = 30.0
ANSWER_S = 30.0
WARM = 200
#: For requests without end: what guards a shared service would only be measured here.
NO_LIMIT = 1_000_000
QUESTION = "What is the weather in Lima?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class Door:
    """Where work is taken in: the process, its Redis, and the bytes of one request."""

    port: int
    process: Worker
    redis: Server
    request: bytes


@dataclass(frozen=True)
class Accepted:
    """What a run of requests came to."""

    shim_s: float
    redis_s: float
    wall_s: float
    latencies_s: Sequence[float]


def run(arguments: Sequence[str] = ()) -> None:
    """Print the ratios."""
    options = _options(arguments)
    _accept(options)
    _answer(options)


def _accept(options: argparse.Namespace) -> None:
    with _ours() as ours, _peer() as peer:
        doors = {"ours": ours, "peer": peer}
        for door in doors.values():
            asyncio.run(_flood(door, WARM, callers=options.callers))
        runs: dict[str, list[Accepted]] = {name: [] for name in doors}
        for _ in range(options.rounds):
            for name, door in doors.items():
                runs[name].append(asyncio.run(_flood(door, options.requests, callers=options.callers)))
    for name, all_ in runs.items():
        each_s = statistics.median(one.shim_s for one in all_) / options.requests
        redis_s = statistics.median(one.redis_s for one in all_) / options.requests
        p50, p99 = (statistics.median(_quantile(one.latencies_s, q) for one in all_) for q in (0.5, 0.99))
        rate = options.requests / statistics.median(one.wall_s for one in all_)
        print(
            f"  {name}: {1 / each_s:6.0f} accepted a second and core ({each_s * 1e6:.0f} µs; Redis {redis_s * 1e6:.0f} µs); "
            f"{rate:.0f}/s of {options.callers} callers, p50 {p50 * 1e3:.1f}, p99 {p99 * 1e3:.1f} ms"
        )
    pairs = list(zip(runs["ours"], runs["peer"], strict=True))
    shim = statistics.median(one.shim_s / other.shim_s for one, other in pairs)
    redis = statistics.median(one.redis_s / other.redis_s for one, other in pairs)
    p99 = statistics.median(
        _quantile(one.latencies_s, 0.99) / _quantile(other.latencies_s, 0.99) for one, other in pairs
    )
    print(f"  ours / peer: CPU of the process {shim:.2f}, of Redis {redis:.2f}, p99 {p99:.2f}")


async def _flood(door: Door, requests: int, *, callers: int) -> Accepted:
    """Send requests over kept connections, each caller one after another."""
    shim_s, redis_s, began_s = door.process.cpu_s, door.redis.cpu_s, time.perf_counter()
    share = math.ceil(requests / callers)
    latencies = await asyncio.gather(*[_caller(door, share) for _ in range(callers)])
    return Accepted(
        shim_s=door.process.cpu_s - shim_s,
        redis_s=door.redis.cpu_s - redis_s,
        wall_s=time.perf_counter() - began_s,
        latencies_s=[latency for of_one in latencies for latency in of_one],
    )


async def _caller(door: Door, requests: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    latencies = []
    for _ in range(requests):
        began_s = time.perf_counter()
        writer.write(door.request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202 "), head
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        latencies.append(time.perf_counter() - began_s)
    writer.close()
    await writer.wait_closed()
    return latencies


@contextlib.contextmanager
def _ours() -> Iterator[Door]:
    with processes.server() as redis, _shim(redis.url) as (port, shim, key):
        yield Door(port, shim, redis, _request(f"Authorization: Bearer {key}\r\n"))


@contextlib.contextmanager
def _peer() -> Iterator[Door]:
    port = free_port()
    arguments = ["-m", "benchmarks.accept_peer", "intake", "--port", str(port)]
    with processes.server() as redis, processes.process([*arguments, "--redis", redis.url]) as intake:
        _await_port(port, intake)
        yield Door(port, intake, redis, _request(""))


@contextlib.contextmanager
def _shim(redis_url: str) -> Iterator[tuple[int, Worker, str]]:
    """Run a shim; yield its port, itself, and a key."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        keys_file = Path(folder) / "keys.json"
        key = api_keys.create(keys_file, tenant_id=TENANT)
        env = {
            "AGENT_EXEC_ENVIRONMENT": "sandbox",
            "AGENT_EXEC_REDIS_URL": redis_url,
            "AGENT_EXEC_API_KEYS_FILE": str(keys_file),
            "AGENT_EXEC_API_REQUESTS_PER_MINUTE": str(NO_LIMIT),
            "AGENT_EXEC_MAX_QUEUED": str(NO_LIMIT),
        }
        with processes.process(["-m", "uvicorn", "api_shim.app:app", "--port", str(port)], env=env) as shim:
            _await_port(port, shim)
            yield port, shim, key


def _request(credential: str) -> bytes:
    body = json.dumps({"agent_id": AGENT, "query": QUESTION, "metadata": {"conversation_id": "c-1"}})
    return (
        f"POST /v1/executions HTTP/1.1\r\nHost: 127.0.0.1\r\n{credential}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _answer(options: argparse.Namespace) -> None:
    with _service(gap_s=options.gap_ms / 1e3) as (model, shim, key):
        took = asyncio.run(_ask(model, shim, key, calls=options.calls))
    direct = took.pop("the provider")
    first, whole = (statistics.median(one[index] for one in direct) for index in (0, 1))
    print(f"  the provider, directly: first token {first * 1e3:.1f} ms, whole answer {whole * 1e3:.0f} ms")
    for name, all_ in took.items():
        added = [[ours - alone for ours, alone in zip(*both, strict=True)] for both in zip(all_, direct, strict=True)]
        firsts = [one[0] for one in added if not math.isnan(one[0])]
        begun = f"first token {statistics.median(firsts) * 1e3:+.1f} ms, " if firsts else ""
        wholes = [one[1] for one in added]
        print(
            f"  {name}: {begun}whole answer {statistics.median(wholes) * 1e3:+.1f} ms "
            f"(p99 {_quantile(wholes, 0.99) * 1e3:+.1f} ms)"
        )


Timed = tuple[float, float]  # until the first token, until the end; in seconds


async def _ask(model: str, shim: str, key: str, *, calls: int) -> dict[str, list[Timed]]:
    """Ask all in turn, as often as that; the first round warms."""
    async with _client(model, "x") as direct, _client(shim, key) as ours, _session() as http:
        ways: dict[str, Callable[[], Awaitable[Timed]]] = {
            "the provider": lambda: _streamed(direct, "script"),
            "chat completions, streamed": lambda: _streamed(ours, AGENT),
            "chat completions": lambda: _blocking(ours),
            "Prefer: wait": lambda: _preferred(http, shim, key),
        }
        took: dict[str, list[Timed]] = {name: [] for name in ways}
        for number in range(calls + 1):
            for name, way in ways.items():
                timed = await way()
                if number:
                    took[name].append(timed)
    return took


@contextlib.asynccontextmanager
async def _client(address: str, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=ANSWER_S) as client:
        yield client


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S))


async def _streamed(client: AsyncOpenAI, model: str) -> Timed:
    began_s, first_s = time.perf_counter(), math.nan
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)  # type: ignore[arg-type,unused-ignore]  # a list of dicts is one of messages
    async with stream:
        async for chunk in stream:
            if math.isnan(first_s) and chunk.choices and chunk.choices[0].delta.content:
                first_s = time.perf_counter() - began_s
    return first_s, time.perf_counter() - began_s


async def _blocking(client: AsyncOpenAI) -> Timed:
    began_s = time.perf_counter()
    completion = await client.chat.completions.create(model=AGENT, messages=MESSAGES)  # type: ignore[arg-type,unused-ignore]  # as above
    assert completion.choices[0].message.content
    return math.nan, time.perf_counter() - began_s


async def _preferred(http: aiohttp.ClientSession, shim: str, key: str) -> Timed:
    began_s = time.perf_counter()
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=60"}
    work = {"agent_id": AGENT, "query": QUESTION}
    async with http.post(f"{shim}/v1/executions", json=work, headers=headers) as response:
        assert response.status == 200, await response.text()
        await response.read()
    return math.nan, time.perf_counter() - began_s


@contextlib.contextmanager
def _service(*, gap_s: float) -> Iterator[tuple[str, str, str]]:
    """Run the service; yield the model's address, the shim's, and a key."""
    model_port, management_port = free_port(), free_port()
    model = f"http://127.0.0.1:{model_port}"
    with (
        processes.server() as redis,
        processes.process(["-m", "benchmarks.wire", "--port", str(model_port), "--gap", str(gap_s)]) as wire,
        processes.process(["-m", "benchmarks.accept_peer", "management", "--port", str(management_port)]) as management,
        processes.process(
            processes.celery("tasks", "worker", "--loglevel", "WARNING"),
            env={
                "AGENT_EXEC_ENVIRONMENT": "sandbox",
                "AGENT_EXEC_REDIS_URL": redis.url,
                "AGENT_EXEC_AGENT_MANAGEMENT_URL": f"http://127.0.0.1:{management_port}",
                "OPENAI_BASE_URL": f"{model}/v1",
                "OPENAI_API_KEY": "x",
                "AGENT_EXEC_LOG_LEVEL": "WARNING",
            },
        ),
        _shim(redis.url) as (port, _, key),
    ):
        _await_port(model_port, wire)
        _await_port(management_port, management)
        yield model, f"http://127.0.0.1:{port}", key


def _await_port(port: int, process: Worker) -> None:
    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    assert processes.wait_for(lambda: asyncio.run(answers()), within_s=READY_S), process.last_words


def _quantile(values: Sequence[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000, help="accepted in each round")
    parser.add_argument("--callers", type=int, default=16, help="at once")
    parser.add_argument("--calls", type=int, default=15, help="answers each way")
    parser.add_argument("--gap-ms", type=float, default=5.0, help="between two tokens")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
