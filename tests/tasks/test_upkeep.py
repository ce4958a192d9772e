"""What is due is sent, at its time, by every worker alike and through an outage of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest

from agent_exec import keys, submission
from agent_exec.broker import fair_queue
from agent_exec.contract.message import Message
from agent_exec.embedded import EmbeddedServer
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, Claimed, StepRef
from tasks import upkeep
from tasks.attempt import end_at
from tasks.upkeep import keep_up
from tests.tasks.conftest import Bench


@contextlib.asynccontextmanager
async def kept_up(bench: Bench) -> AsyncIterator[None]:
    running = asyncio.create_task(keep_up(bench.store, end_at=partial(end_at, bench.resources)))
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


async def test_what_has_to_end_ends_though_nobody_takes_its_hint(bench: Bench) -> None:
    await waits(bench, 3_600)
    async with kept_up(bench):
        await bench.store.run(ledger.cancel("acme", bench.execution_id))
        while (await bench.record()).response is None:
            await asyncio.sleep(0.01)
        cancelled = await bench.response()
        await bench.accept(deadline_s=0.2)
        while (await bench.record()).response is None:
            await asyncio.sleep(0.01)
        overdue = await bench.response()
    assert [final.error and final.error.code for final in (cancelled, overdue)] == ["cancelled", "timed_out"]
    assert await queued(bench) == 0
    assert await bench.store.redis.zcard(keys.pending()) == 0


async def test_an_end_that_breaks_is_looked_at_again_and_stops_nothing(bench: Bench) -> None:
    tries = 0

    async def broken(ref: StepRef) -> None:
        nonlocal tries
        tries += 1
        await bench.store.redis.zadd(keys.pending(), {f"{ref.tenant_id} {ref.execution_id} {ref.step}": 0})
        raise ZeroDivisionError

    await bench.store.run(ledger.cancel("acme", bench.execution_id))
    running = asyncio.create_task(keep_up(bench.store, end_at=broken))
    while tries < 2 and not running.done():
        await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


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


async def accepted(bench: Bench, count: int) -> list[Message]:
    """Accept executions, their hints queued as a door does it."""
    messages = [await bench.accept() for _ in range(count)]
    for message in messages:
        hint = submission.first_hint(message, Acceptance(message.execution_id, replayed=False, begins=True, priority=5))
        await bench.store.run(hint.push())
    return messages


async def as_if_later(bench: Bench, seconds: float) -> None:
    """Bring what is looked at later so much nearer."""
    for member in await bench.store.redis.zrange(keys.pending(), 0, -1):
        await bench.store.redis.zincrby(keys.pending(), -seconds * 1000, member)


async def flush_broker(bench: Bench) -> None:
    """Lose the broker's data, and none of the ledger's (fault F23)."""
    for pattern in ("ax:queue*", "agent_execution*", "agent_tools*"):
        async for key in bench.store.redis.scan_iter(pattern):
            await bench.store.redis.delete(key)


async def test_a_broker_that_lost_its_data_has_its_hints_back(bench: Bench) -> None:
    await bench.store.redis.flushdb()
    messages = await accepted(bench, 5)
    begun = await bench.store.run(ledger.claim(bench.ref("prompt"), lease_s=60, worker="w"))
    assert isinstance(begun, Claimed)
    await flush_broker(bench)
    assert await queued(bench) == 0
    async with kept_up(bench):
        await as_if_later(bench, ledger.LOST_HINT_AFTER_MS / 1000)
        while await queued(bench) < len(messages) - 1:
            await asyncio.sleep(0.01)
    records = await bench.store.redis.hkeys(keys.fair_record())
    assert {tag.decode() for tag in records} == {f"{message.execution_id}.prompt.0" for message in messages[:-1]}


async def test_a_dead_workers_step_is_hinted_when_its_lease_ends(bench: Bench) -> None:
    assert isinstance(await bench.store.run(ledger.claim(bench.ref("prompt"), lease_s=0.1, worker="dies")), Claimed)
    async with kept_up(bench):
        while not await queued(bench):
            await asyncio.sleep(0.01)
    assert await bench.store.redis.hkeys(keys.fair_record()) == [f"{bench.execution_id}.prompt.1".encode()]


async def test_a_long_queue_is_not_flooded(bench: Bench) -> None:
    """Every hint is there: looking for lost ones queues none, and looks ever less often."""
    await bench.store.redis.flushdb()
    count = ledger.DUE_AT_ONCE + 20
    await accepted(bench, count)
    for again_s in (5, 10, 20, 40, 60, 60):
        await as_if_later(bench, 60)
        looked = 0
        while (due := await bench.store.run(ledger.due())).hints:
            assert len(due.hints) <= ledger.DUE_AT_ONCE
            looked += len(due.hints)
            assert await bench.store.run_many([hint.push() for hint in due.hints]) == [False] * len(due.hints)
        assert looked == count
        assert due.next_in_ms is not None
        assert again_s - 4 < due.next_in_ms / 1000 <= again_s
    assert await queued(bench) == count
