"""Following streams in this process: waking, joining late, Redis going away, and the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from agent_exec import api_keys, events, keys, submission
from agent_exec.api_keys import Caller
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import Unauthorized
from agent_exec.settings import read_settings
from agent_exec.store import Store
from api_shim import reader
from api_shim.counters import Counters
from api_shim.live import BLOCK_MS, Live
from api_shim.reader import pages
from api_shim.shim import Shim, opened
from tests.api_shim.played_worker import PlayedWorker, until

#: Far below the time that an unheard reader would wait.
SOON_S = BLOCK_MS / 1_000 / 4


@pytest.fixture
async def live(async_store: Store, redis_url: str) -> AsyncIterator[Live]:
    following = Live(redis_url)
    async with following.running(async_store.redis):
        yield following


async def add(store: Store, execution_id: str, number: int) -> None:
    stream = keys.streaming("acme", execution_id)
    await store.redis.xadd(stream, {"event": "e"}, id=f"{number}-0")
    await store.redis.expire(stream, 60)


async def test_a_reader_is_woken_by_what_comes_and_by_nothing_before(live: Live, async_store: Store) -> None:
    await add(async_store, "a", 1)
    with live.watch(keys.streaming("acme", "a"), after=1) as watch:
        assert not await watch.beyond(1, timeout_s=0.05)
        await add(async_store, "a", 2)
        assert await watch.beyond(1, timeout_s=5)
        assert await watch.beyond(1, timeout_s=0)
        assert not await watch.beyond(2, timeout_s=0.05)


async def test_who_joins_late_is_heard_at_once(live: Live, async_store: Store) -> None:
    """Each new stream is asked for though the connection blocks on those before it."""
    async with AsyncExitStack() as stack:
        for number in range(20):
            watch = stack.enter_context(live.watch(keys.streaming("acme", str(number)), after=0))
            assert not await watch.beyond(0, timeout_s=0.02)  # the others' read blocks by now
            await add(async_store, str(number), 1)
            began_s = time.monotonic()
            assert await watch.beyond(0, timeout_s=5)
            assert time.monotonic() - began_s < SOON_S


async def test_readers_of_one_stream_may_stand_at_different_places(live: Live, async_store: Store) -> None:
    stream = keys.streaming("acme", "a")
    for number in (1, 2, 3):
        await add(async_store, "a", number)
    with live.watch(stream, after=3) as ahead:
        assert not await ahead.beyond(3, timeout_s=0.05)
        with live.watch(stream, after=0) as behind:
            assert await behind.beyond(0, timeout_s=5)
        await add(async_store, "a", 4)
        assert await ahead.beyond(3, timeout_s=5)


async def test_when_all_have_left_the_next_one_is_served_too(live: Live, async_store: Store) -> None:
    for number in (1, 2):
        with live.watch(keys.streaming("acme", "a"), after=number - 1) as watch:
            await add(async_store, "a", number)
            assert await watch.beyond(number - 1, timeout_s=5)


async def test_a_connection_that_is_cut_is_made_again(live: Live, async_store: Store) -> None:
    with live.watch(keys.streaming("acme", "a"), after=0) as watch:
        for number in (1, 2, 3):
            assert not await watch.beyond(number - 1, timeout_s=0.05)
            await async_store.redis.client_kill_filter(_type="normal", skipme=True)
            await add(async_store, "a", number)
            assert await watch.beyond(number - 1, timeout_s=5)


@pytest.fixture
async def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Shim, EmbeddedServer]]:
    """A shim's parts in this process, on a server of their own."""
    monkeypatch.setattr(reader, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(reader, "STORAGE_PAUSE_S", 0.05)
    api_keys.create(tmp_path / "keys.json", tenant_id="acme")
    with EmbeddedServer(tmp_path / "redis") as server:
        settings = read_settings(redis_url=server.url, api_keys_file=tmp_path / "keys.json")
        async with opened(settings, Counters()) as parts:
            yield parts, server


@pytest.fixture
def caller(shim: tuple[Shim, EmbeddedServer], tmp_path: Path) -> Caller:
    """The one caller whom it knows."""
    (key,) = api_keys.list_keys(tmp_path / "keys.json")
    return Caller(key.tenant_id, key.role, key.key_id)


class Following:
    """An execution, its worker, and a reader who notes what it sees."""

    def __init__(self, parts: Shim, execution_id: str) -> None:
        self.worker = PlayedWorker(parts.store, "acme", execution_id)
        self.seen: list[int] = []
        self._parts, self._execution_id = parts, execution_id

    async def read(self, caller: Caller) -> None:
        first = await self._parts.run(events.read("acme", self._execution_id))
        async with aclosing(pages(self._parts, caller, first, after=0)) as following:
            async for page in following:
                self.seen.extend(event.sequence for event in page.events)


@pytest.fixture
async def following(shim: tuple[Shim, EmbeddedServer]) -> Following:
    parts, _ = shim
    message = submission.message_of(ExecutionRequest(agent_id="desk", query="q"), tenant_id="acme")
    await parts.run(submission.store(message, open_retention_s=3_600, max_queued=10_000))
    return Following(parts, message.execution_id)


async def test_a_reader_waits_for_a_store_that_is_away_and_misses_nothing(
    shim: tuple[Shim, EmbeddedServer], following: Following, caller: Caller
) -> None:
    parts, server = shim
    reading = asyncio.create_task(following.read(caller))
    await following.worker.tell("before")
    await until(lambda: following.seen == [1, 2])
    server.kill()
    began_s = time.monotonic()
    await until(lambda: time.monotonic() - began_s > 0.5)  # several looks into the void
    assert not reading.done()
    server.start()
    await following.worker.tell("after")
    await until(lambda: following.seen == [1, 2, 3])
    parts.live.drain()
    await asyncio.wait_for(reading, 5)
    assert following.seen == [1, 2, 3]


async def test_a_reader_whose_key_is_gone_is_told_before_the_next_page(following: Following) -> None:
    reading = asyncio.create_task(following.read(Caller("acme", "caller", "gone0000")))
    await until(lambda: following.seen == [1])
    await following.worker.tell("secret")
    with pytest.raises(Unauthorized):
        await asyncio.wait_for(reading, 5)
    assert following.seen == [1]
