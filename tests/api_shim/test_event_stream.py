"""Server-sent events of an execution that lives: replay, live, resume, many readers, and the end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent_exec import api_keys
from agent_exec.contract.event import Frame
from agent_exec.embedded import EmbeddedServer
from agent_exec.store import Store
from api_shim.problem import Problem
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process


@dataclass
class ServerSent:
    """One server-sent event."""

    id: int
    event: str
    frame: Frame


class EventStream:
    """A reader of server-sent events, who checks their form."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments: list[str] = []
        self.retry_ms = 0

    async def next(self) -> ServerSent | None:
        """Return the next event, or None at the end."""
        fields: dict[str, str] = {}
        while line := await self.response.content.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "" and value:
                self.comments.append(value)
            elif name == "retry":
                self.retry_ms = int(value)
            elif name:
                fields[name] = value
            elif fields:
                frame = Frame.model_validate_json(fields["data"])
                assert (frame.sequence, frame.event) == (int(fields["id"]), fields["event"])
                return ServerSent(int(fields["id"]), fields["event"], frame)
        return None

    async def rest(self) -> list[ServerSent]:
        """Return all events to the end."""
        events = []
        while event := await self.next():
            events.append(event)
        return events


@asynccontextmanager
async def followed(caller: aiohttp.ClientSession, path: str, **options: Any) -> AsyncIterator[EventStream]:
    async with caller.get(f"{path}/events", **options) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield EventStream(response)


async def test_events_come_as_they_are_written_and_end_with_the_terminal_one(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    async with followed(acme, execution.path) as stream:
        first = await stream.next()
        assert first is not None
        assert (first.id, first.event) == (1, "agent_execution_started")
        assert stream.retry_ms == 1_000
        for number, token in enumerate(["4", "2", "\u2028\r\n"], start=2):
            await execution.tell(token)
            event = await stream.next()
            assert event is not None
            assert (event.id, event.frame.data) == (number, {"token": token, "is_final": False})
        await execution.finish()
        (last,) = await stream.rest()
    assert (last.id, last.event) == (5, "agent_execution_completed")
    assert last.frame.event_id == f"{execution.id}:5"


async def test_a_finished_execution_is_replayed_whole(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    await execution.tell(*[str(number) for number in range(1_200)])
    await execution.finish()
    async with followed(acme, execution.path) as stream:
        events = await stream.rest()
    assert [event.id for event in events] == list(range(1, 1_203))
    async with followed(acme, execution.path, headers={"Last-Event-ID": "1202"}) as stream:
        assert await stream.rest() == []


async def test_a_reader_that_leaves_again_and_again_misses_nothing_and_sees_nothing_twice(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    async def work() -> None:
        for number in range(300):
            await execution.tell(str(number))
        await execution.finish()

    worker = asyncio.create_task(work())
    seen: list[int] = []
    is_over = False
    while not is_over:
        async with followed(acme, execution.path, headers={"Last-Event-ID": str(len(seen))}) as stream:
            for _ in range(17):
                event = await stream.next()
                if event is None:
                    is_over = True
                    break
                seen.append(event.id)
    await worker
    assert seen == list(range(1, 303))


async def test_the_header_wins_over_the_query(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    await execution.tell("a", "b")
    await execution.finish()
    async with followed(acme, execution.path, params={"after": "3"}) as stream:
        assert [event.id for event in await stream.rest()] == [4]
    async with followed(acme, execution.path, params={"after": "3"}, headers={"Last-Event-ID": "2"}) as stream:
        assert [event.id for event in await stream.rest()] == [3, 4]


@pytest.mark.parametrize("last", ["abc", "-1", "1.5", "", "9007199254740992", "99", "0x1"])
async def test_a_last_event_id_that_never_was(acme: aiohttp.ClientSession, execution: Submitted, last: str) -> None:
    async with acme.get(f"{execution.path}/events", headers={"Last-Event-ID": last}) as response:
        assert response.status == 422
        assert Problem.model_validate_json(await response.text()).code == "invalid_message"


async def test_fifty_readers_of_one_execution_see_the_same(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    async def read() -> list[ServerSent]:
        async with followed(acme, execution.path) as stream:
            return await stream.rest()

    async def readers_are_there() -> bool:
        async with acme.get("/metrics") as response:
            return "agent_exec_api_live_readers 50.0" in await response.text()

    async with acme.get("/metrics"):
        readers = [asyncio.create_task(read()) for _ in range(50)]
    await until(readers_are_there)
    for number in range(100):
        await execution.tell(str(number))
    await execution.finish()
    everything = await asyncio.gather(*readers)
    assert all([event.id for event in events] == list(range(1, 103)) for events in everything)
    async with acme.get("/metrics") as response:
        assert "agent_exec_api_live_readers 0.0" in await response.text()


async def test_readers_of_many_executions_see_their_own(acme: aiohttp.ClientSession, async_store: Store) -> None:
    async def run(number: int) -> None:
        async with acme.post("/v1/executions", json={"agent_id": "desk", "query": str(number)}) as response:
            execution = Submitted(async_store, await response.json())
        async with followed(acme, execution.path) as stream:
            await stream.next()
            for word in ("one", "two", "three"):
                await execution.tell(f"{number} {word}")
                event = await stream.next()
                assert event is not None
                assert event.frame.data["token"] == f"{number} {word}"
            await execution.finish()
            assert len(await stream.rest()) == 1

    await asyncio.gather(*[run(number) for number in range(60)])


async def test_an_idle_stream_is_pinged(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    async with followed(acme, execution.path) as stream:
        await stream.next()
        waiting = asyncio.create_task(stream.next())
        await until(lambda: stream.comments == ["ping"])
        await execution.finish()
        assert await waiting is not None


async def test_a_reader_that_does_not_read_is_dropped_and_may_resume(
    acme: aiohttp.ClientSession, execution: Submitted, shim: ShimProcess, api_key: dict[str, str]
) -> None:
    """The kernel's buffers are filled by a page of long tokens; nothing more is held for the reader."""
    for _ in range(20):
        await execution.tell(*["x" * 1_000] * 499)
    await execution.finish()
    with socket.create_connection(("127.0.0.1", shim.port)) as sleeper:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sleeper.sendall(
            f"GET {execution.path}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\n\r\n".encode()
        )
        await until(lambda: "reader dropped" in shim.output)
    async with followed(acme, execution.path, headers={"Last-Event-ID": "3"}) as stream:
        assert [event.id for event in await stream.rest()] == list(range(4, 9_983))


async def test_a_stream_ends_when_its_key_is_revoked(
    shim: ShimProcess, keys_file: Path, execution: Submitted, async_store: Store
) -> None:
    key = api_keys.create(keys_file, tenant_id="acme")

    async def is_known() -> bool:
        async with session(shim, key) as caller, caller.get(execution.path) as response:
            return response.status == 200

    await until(is_known)
    async with session(shim, key) as caller, followed(caller, execution.path) as stream:
        await stream.next()
        api_keys.revoke(keys_file, key.split("_")[1])
        async with asyncio.timeout(8):
            assert await stream.next() is None


async def test_a_stream_goes_on_after_redis_was_killed(
    tmp_path: Path, keys_file: Path, api_key: dict[str, str]
) -> None:
    with EmbeddedServer(tmp_path / "redis") as server:
        settings = {"redis_url": server.url, "api_keys_file": keys_file}
        with shim_process(tmp_path, **settings) as shim:
            async with session(shim, api_key["acme"]) as acme:
                async with acme.post("/v1/executions", json={"agent_id": "desk", "query": "q"}) as response:
                    answer = await response.json()
                async with followed(acme, f"/v1/executions/{answer['execution_id']}") as stream:
                    await stream.next()
                    server.kill()
                    await until(lambda: "redis does not answer" in shim.output)
                    server.start()
                    store = Store(server.url)
                    execution = Submitted(store, answer)
                    await execution.tell("still here")
                    event = await stream.next()
                    assert event is not None
                    assert event.frame.data["token"] == "still here"
                    await execution.finish()
                    assert json.loads((await stream.rest())[0].frame.model_dump_json())["data"]["response"]
                    await store.aclose()
