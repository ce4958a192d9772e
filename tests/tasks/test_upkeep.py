"""What is due is sent, at its time, by every worker alike and through an outage of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from agent_exec.broker import fair_queue
from agent_exec.embedded import EmbeddedServer
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed
from tasks import upkeep
from tasks.upkeep import keep_up
from tests.tasks.conftest import Bench


@contextlib.asynccontextmanager
async def kept_up(bench: Bench) -> AsyncIterator[None]:
    running = asyncio.create_task(keep_up(bench.store))
    try:
        yield
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def waits(bench: Bench, due_in_s: float) -> None:
    claim = await bench.store.run(ledger.claim(bench.ref("prompt"), lease_s=60, worker="other"))
    assert isinstance(claim, Claimed)
    await bench.store.run(ledger.wait(claim.hold, due_in_s=due_in_s, events=[]))


async def queued(bench: Bench) -> int:
    return (await bench.store.run(fair_queue.depths()))["agent_execution"].waiting


async def test_a_hint_is_sent_when_its_step_is_due_and_not_before(bench: Bench) -> None:
    await waits(bench, 0.2)
    began = time.monotonic()
    async with kept_up(bench):
        while not await queued(bench):
            await asyncio.sleep(0.01)
    assert 0.15 <= time.monotonic() - began < upkeep.LOOK_EVERY_S, "it sleeps towards what it knows of"


async def test_two_workers_send_one_hint(bench: Bench) -> None:
    await waits(bench, 0.05)
    async with kept_up(bench), kept_up(bench):
        while not await queued(bench):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await queued(bench) == 1


async def test_what_becomes_due_unannounced_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY_S", 0.05)
    await bench.store.redis.flushdb()
    async with kept_up(bench):
        await asyncio.sleep(0.1)
        await bench.accept()
        await waits(bench, 0)
        while not await queued(bench):
            await asyncio.sleep(0.01)


async def test_an_outage_of_redis_is_outlasted(
    bench: Bench, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY_S", 0.05)
    looked_in_vain = asyncio.Event()
    run = bench.store.run

    async def run_and_tell(call):  # type: ignore[no-untyped-def]
        try:
            return await run(call)
        except Exception:
            looked_in_vain.set()
            raise

    monkeypatch.setattr(bench.store, "run", run_and_tell)
    await waits(bench, 0.3)
    async with kept_up(bench):
        redis_server.kill()
        await looked_in_vain.wait()
        redis_server.restart()
        while not await queued(bench):
            await asyncio.sleep(0.01)
