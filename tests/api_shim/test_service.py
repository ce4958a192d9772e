"""The shim as operators meet it: health, metrics, its OpenAPI document, its end, and Redis away."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiohttp
import pytest
import redis

from agent_exec import keys, submission
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.embedded import EmbeddedServer
from agent_exec.notifier_state import NotifierReport
from agent_exec.store import BlockingStore, Store
from api_shim.app import OPERATIONS
from api_shim.openapi import document
from api_shim.problem import Problem
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process

WORK = {"agent_id": "desk", "query": "hello"}
#: What an answer may take to come when the store is away (docs/promise.md).
REFUSED_WITHIN_S = 3.0


async def test_it_lives_and_is_ready_without_a_key(shim: ShimProcess) -> None:
    async with aiohttp.ClientSession(shim.url) as anybody:
        for path, status in (("/health/live", "live"), ("/health/ready?now=1", "ready")):
            async with anybody.get(path) as response:
                assert (response.status, await response.json()) == (200, {"status": status})


async def test_its_counters_have_no_series_of_a_callers_making(acme: aiohttp.ClientSession) -> None:
    await (await acme.get("/v1/executions/no-such-id")).read()
    await (await acme.get("/nowhere/CANARY")).read()
    async with acme.get("/metrics") as response:
        text = await response.text()
    assert 'route="/v1/executions/{execution_id}",status="404"' in text
    assert 'route="none",status="404"' in text
    assert "CANARY" not in text


async def test_how_the_notifier_stands_is_among_them(acme: aiohttp.ClientSession, redis_url: str) -> None:
    async with acme.get("/metrics") as response:
        text = await response.text()
    assert "agent_exec_notifier_active 0.0" in text
    assert "agent_exec_notifier_frames_total" not in text
    report = NotifierReport(holder="one", connected_since_ms=1, connections=2, sent=7, ignored={"bad_ack": 3})
    with closing(BlockingStore(redis_url)) as store:
        store.run(
            submission.store(
                submission.message_of(ExecutionRequest(agent_id="desk", query="?"), tenant_id="acme"),
                open_retention_s=86_400,
                max_queued=10,
            )
        )
        store.redis.set(keys.notifier_lease(), "one", px=60_000)
        store.redis.set(keys.notifier_report(), report.model_dump_json(), px=60_000)
    async with acme.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    assert {
        "agent_exec_notifier_active 1.0",
        "agent_exec_notifier_connected 1.0",
        "agent_exec_notifier_unsent_executions 1.0",
        "agent_exec_notifier_unacked_executions 0.0",
        "agent_exec_notifier_frames_total 7.0",
        "agent_exec_notifier_connections_total 2.0",
        'agent_exec_notifier_ignored_total{reason="bad_ack"} 3.0',
    } <= set(lines)
    [lag] = [line for line in lines if line.startswith("agent_exec_notifier_lag_seconds ")]
    assert 0 < float(lag.split()[1]) < 60


async def test_every_answer_bears_a_request_id(acme: aiohttp.ClientSession) -> None:
    for path in ("/v1/executions", "/nowhere", "/health/live"):
        async with acme.get(path, headers={"X-Request-Id": "my-id.1"}) as response:
            assert response.headers["X-Request-Id"] == "my-id.1"
        async with acme.get(path, headers={"X-Request-Id": "not an id"}) as response:
            assert len(response.headers["X-Request-Id"]) == 32


async def test_anybody_may_read_the_openapi_document(shim: ShimProcess) -> None:
    async with aiohttp.ClientSession(shim.url) as anybody, anybody.get("/openapi.json") as response:
        assert await response.json() == document(OPERATIONS)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def own_shim(own_redis: EmbeddedServer, tmp_path: Path, keys_file: Path) -> Iterator[ShimProcess]:
    with shim_process(tmp_path, redis_url=own_redis.url, api_keys_file=keys_file) as shim:
        yield shim


async def accepted_s(caller: aiohttp.ClientSession) -> tuple[int, float]:
    """Submit; return the status, and how long the answer took."""
    began_s = time.monotonic()
    async with caller.post("/v1/executions", json=WORK) as response:
        if response.status == 503:
            assert response.headers["Retry-After"] == "1"
            assert Problem.model_validate_json(await response.text()).retryable
        return response.status, time.monotonic() - began_s


async def test_while_redis_is_dead_answers_are_503_and_soon(
    own_redis: EmbeddedServer, own_shim: ShimProcess, api_key: dict[str, str]
) -> None:
    async with session(own_shim, api_key["acme"]) as caller:
        own_redis.kill()
        answers = await asyncio.gather(*[accepted_s(caller) for _ in range(50)])
        assert {status for status, _ in answers} == {503}
        assert max(took_s for _, took_s in answers) < REFUSED_WITHIN_S
        for path, status in (("/health/live", 200), ("/health/ready", 503), ("/v1/executions", 503)):
            async with caller.get(path) as response:
                assert response.status == status
                assert str(own_redis.directory) not in await response.text()
        own_redis.start()

        async def is_accepted() -> bool:
            return (await accepted_s(caller))[0] == 202

        await until(is_accepted, within_s=5)


async def test_while_redis_hangs_answers_are_503_and_soon(
    own_redis: EmbeddedServer, own_shim: ShimProcess, api_key: dict[str, str]
) -> None:
    async with session(own_shim, api_key["acme"]) as caller:
        assert (await accepted_s(caller))[0] == 202
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                answers = await asyncio.gather(*[accepted_s(caller) for _ in range(20)])
                assert {status for status, _ in answers} == {503}
                assert max(took_s for _, took_s in answers) < REFUSED_WITHIN_S
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)

        async def is_accepted() -> bool:
            return (await accepted_s(caller))[0] == 202

        await until(is_accepted, within_s=5)


async def test_a_full_redis_is_said_to_be_full(
    own_redis: EmbeddedServer, own_shim: ShimProcess, api_key: dict[str, str]
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        async with session(own_shim, api_key["acme"]) as caller:
            async with caller.post("/v1/executions", json=WORK) as response:
                assert response.status == 503
                assert Problem.model_validate_json(await response.text()).code == "storage_full"
            client.config_set("maxmemory", 0)
            assert (await accepted_s(caller))[0] == 202


async def test_it_starts_before_redis_does(tmp_path: Path, keys_file: Path, api_key: dict[str, str]) -> None:
    with EmbeddedServer(tmp_path / "redis") as server:
        url = server.url
    with shim_process(tmp_path, redis_url=url, api_keys_file=keys_file) as shim:
        async with session(shim, api_key["acme"]) as caller:
            assert (await accepted_s(caller))[0] == 503
            with server:
                assert server.url == url

                async def is_accepted() -> bool:
                    return (await accepted_s(caller))[0] == 202

                await until(is_accepted, within_s=5)


async def test_without_a_file_descriptor_left_it_serves_whom_it_has_and_recovers(
    own_redis: EmbeddedServer, own_shim: ShimProcess, api_key: dict[str, str]
) -> None:
    """F58: a flood of connections is refused at the socket, for there is nothing to answer it with."""
    resource.prlimit(own_shim.pid, resource.RLIMIT_NOFILE, (256, 256))
    store = Store(own_redis.url)
    async with session(own_shim, api_key["acme"]) as caller:
        async with caller.post("/v1/executions", json=WORK) as response:
            execution = Submitted(store, await response.json())
        async with caller.ws_connect(f"{execution.path}/ws") as stream:
            assert (await stream.receive_json())["sequence"] == 1
            async with AsyncExitStack() as flood:
                refused = 0
                for _ in range(1_000):
                    reader, writer = await asyncio.open_connection("127.0.0.1", own_shim.port)
                    flood.callback(writer.close)
                    writer.write(b"GET /health/live HTTP/1.1\r\n")  # and never the rest
                    try:
                        async with asyncio.timeout(0.001):
                            refused += await reader.read(1) == b""
                    except TimeoutError:
                        pass
                    except ConnectionError:
                        refused += 1
                assert refused > 0
                await execution.tell("on")
                async with asyncio.timeout(5):
                    assert (await stream.receive_json())["data"]["token"] == "on"
            assert own_shim.running

            async def is_accepted() -> bool:
                try:
                    return (await accepted_s(caller))[0] == 202
                except aiohttp.ClientConnectionError:
                    return False

            await until(is_accepted, within_s=10)
            await execution.finish()
            assert (await stream.receive_json())["event"] == "agent_execution_completed"
    await store.aclose()


async def test_told_to_end_it_lets_every_reader_and_waiter_go(own_shim: ShimProcess, api_key: dict[str, str]) -> None:
    async with session(own_shim, api_key["acme"]) as caller:
        async with caller.post("/v1/executions", json=WORK) as response:
            path = response.headers["Location"]
        waiter = asyncio.create_task(waits(caller))
        await until(lambda: both_are_stored(caller))
        async with caller.get(f"{path}/events") as stream, caller.ws_connect(f"{path}/ws") as socket:
            await stream.content.readuntil(b"\n\n")
            await socket.receive()
            own_shim.send(signal.SIGTERM)
            async with asyncio.timeout(5):
                await stream.content.read()
                assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
                assert await waiter == 202
                await until(lambda: not own_shim.running)
    assert "Traceback" not in own_shim.output


async def both_are_stored(caller: aiohttp.ClientSession) -> bool:
    async with caller.get("/v1/executions") as response:
        return len((await response.json())["executions"]) == 2


async def waits(caller: aiohttp.ClientSession) -> int:
    async with caller.post("/v1/executions", json=WORK, headers={"Prefer": "wait=20"}) as response:
        return response.status
