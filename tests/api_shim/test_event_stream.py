"""Server-sent events of an execution that lives: replay, live, resume, many readers, and the end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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
from tests.api_shim.ag_ui_client import judged
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
    async with followed(acme, execution.path, headers={"Last-Event-ID": "1201"}) as stream:
        assert [event.id for event in await stream.rest()] == [1_202]


async def test_behind_the_end_a_reader_is_told_to_come_no_more(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    """An EventSource connects again after the end of any stream, and gives up at 204 alone."""
    await execution.finish()
    for options in ({"headers": {"Last-Event-ID": "2"}}, {"params": {"after": "2"}}):
        async with acme.get(f"{execution.path}/events", **options) as response:
            assert (response.status, await response.text()) == (204, "")


async def test_a_reader_that_leaves_again_and_again_misses_nothing_and_sees_nothing_twice(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    """F55."""

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


@pytest.mark.parametrize("last", ["", "0"])
async def test_a_last_event_id_of_who_has_seen_none(
    acme: aiohttp.ClientSession, execution: Submitted, last: str
) -> None:
    await execution.finish()
    async with followed(acme, execution.path, headers={"Last-Event-ID": last}) as stream:
        assert [event.id for event in await stream.rest()] == [1, 2]


@pytest.mark.parametrize("last", ["abc", "-1", "1.5", "9007199254740992", "1" * 400, "99", "0x1", "١", "1_0"])
async def test_a_last_event_id_that_never_was(acme: aiohttp.ClientSession, execution: Submitted, last: str) -> None:
    async with acme.get(f"{execution.path}/events", headers={"Last-Event-ID": last}) as response:
        assert response.status == 422
        assert Problem.model_validate_json(await response.text()).code == "invalid_message"


async def test_five_hundred_readers_of_one_execution_see_the_same(
    acme: aiohttp.ClientSession, shim: ShimProcess, api_key: dict[str, str], execution: Submitted
) -> None:
    """They share what is read: an event costs Redis no more for all of them than for one (F55)."""
    many = 500

    async def read(caller: aiohttp.ClientSession) -> list[int]:
        async with followed(caller, execution.path) as stream:
            return [event.id for event in await stream.rest()]

    async def reads() -> int:
        calls = await execution.redis.info("commandstats")
        return int(calls["cmdstat_evalsha"]["calls"])

    unbound = aiohttp.TCPConnector(limit=0)
    async with session(shim, api_key["acme"], connector=unbound) as crowd:
        readers = [asyncio.create_task(read(crowd)) for _ in range(many)]

        async def are_there() -> bool:
            return await live_readers(acme) >= many  # one of another test may be leaving yet

        await until(are_there, within_s=30)
        before = await reads()
        for number in range(20):
            await execution.tell(str(number))
        await execution.finish()
        assert await asyncio.gather(*readers) == [list(range(1, 23))] * many
        # Without sharing, 21 events are 10,500 reads. Quiet readers look again every two seconds.
        assert await reads() - before < 2 * many

    async def are_gone() -> bool:
        return await live_readers(acme) == 0

    await until(are_gone, within_s=30)


async def live_readers(caller: aiohttp.ClientSession) -> float:
    async with caller.get("/metrics") as response:
        (line,) = [
            line for line in (await response.text()).splitlines() if line.startswith("agent_exec_api_live_readers ")
        ]
        return float(line.split()[1])


async def test_a_tenant_may_have_so_many_streams_open_and_another_its_own(
    tmp_path: Path, redis_server: EmbeddedServer, redis_url: str, keys_file: Path, api_key: dict[str, str]
) -> None:
    """S38, B35."""
    settings = {"redis_url": redis_server.url, "api_keys_file": keys_file, "api_max_streams": 2}
    with shim_process(tmp_path, **settings) as shim:
        async with session(shim, api_key["acme"]) as acme, session(shim, api_key["globex"]) as globex:
            paths = []
            for caller in (acme, globex):
                async with caller.post("/v1/executions", json={"agent_id": "desk", "query": "q"}) as response:
                    paths.append(f"/v1/executions/{(await response.json())['execution_id']}")
            path, others = paths
            async with followed(acme, path) as stream, acme.ws_connect(f"{path}/ws"):
                await stream.next()
                async with acme.get(f"{path}/events") as response:
                    assert (response.status, response.headers["Retry-After"]) == (429, "1")
                    assert Problem.model_validate_json(await response.text()).code == "too_many_streams"
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await acme.ws_connect(f"{path}/ws")
                assert refused.value.status == 429
                async with followed(globex, others) as stream:
                    assert await stream.next() is not None

            async def has_room() -> bool:
                async with acme.get(f"{path}/events") as one, acme.ws_connect(f"{path}/ws"):
                    return one.status == 200

            async with asyncio.timeout(10):  # both have left, however the shim hears of it
                while True:
                    with suppress(aiohttp.WSServerHandshakeError):
                        if await has_room():
                            break


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
    """The kernel's buffers are filled by a page of long tokens; nothing more is held for the reader (S39, F55)."""
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


class AgUiStream:
    """A reader of AG-UI's events as an EventSource hears them: only what stands under `data`, and the last id."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self.last_id = ""

    async def next(self) -> str | None:
        """Return the next event, or None at the end."""
        told: str | None = None
        while line := await self._content.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            assert name != "event"
            if name == "id":
                self.last_id = value
            elif name == "data":
                told = value
            elif not name and told is not None:
                return told
        return None


async def test_the_same_execution_as_ag_ui_whole_and_from_any_place(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    async def read(last_id: str | None, *, most: int = 1_000) -> tuple[list[str], list[str]]:
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        options = {"params": {"format": "ag-ui"}, "headers": headers}
        async with acme.get(f"{execution.path}/events", **options) as response:
            if response.status == 204:
                return [], []
            assert response.status == 200, await response.text()
            stream, told, ids = AgUiStream(response), [], []
            while len(told) < most and (event := await stream.next()) is not None:
                told.append(event)
                ids.append(stream.last_id)
            return told, ids

    await execution.tell("4")
    live, live_ids = await read(None, most=3)  # and leaves, between the two parts of the token's event
    assert live_ids == ["1", "1.1", "2"]
    await execution.tell("2")
    await execution.finish()
    whole, ids = await read(None)
    judged(whole)
    assert whole[:3] == live
    assert [json.loads(event)["type"] for event in whole] == [
        "RUN_STARTED",
        *["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"],
        "RUN_FINISHED",
    ]
    for index, last_id in enumerate(ids):
        assert (await read(last_id))[0] == whole[index + 1 :]
    for nonsense in ("1.x", "99", "3.1.1"):
        options = {"params": {"format": "ag-ui"}, "headers": {"Last-Event-ID": nonsense}}
        async with acme.get(f"{execution.path}/events", **options) as response:
            assert response.status == 422
    async with acme.get(f"{execution.path}/events", params={"format": "xml"}) as response:
        assert response.status == 422
