"""What a worker is beside its steps: opened from the environment, kept running, closed behind it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from celery.signals import worker_shutting_down

from agent_exec import keys, submission
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.errors import SettingsInvalid
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, StepRef
from agent_exec.store import Store
from tasks.leases import HandBack
from tasks.lifespan import lifespan


@pytest.fixture(autouse=True)
def environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings as a worker reads them."""
    monkeypatch.setenv("AGENT_EXEC_REDIS_URL", redis_url)
    monkeypatch.setenv("AGENT_EXEC_HEARTBEAT_S", "0.02")
    monkeypatch.setenv("AGENT_EXEC_LEASE_S", "0.2")
    monkeypatch.setenv("AGENT_EXEC_SHUTDOWN_GRACE_S", "0.05")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")


async def test_leases_are_kept_until_the_worker_has_waited_long_enough() -> None:
    message = submission.message_of(ExecutionRequest(agent_id="desk", query="6 * 7?"), tenant_id="acme")
    async with lifespan(None) as resources:
        assert (await resources.providers.named("openai", tenant_id="acme")).name == "openai"
        await resources.store.run(submission.store(message, open_retention_s=3_600, max_queued=10))
        claim = await resources.store.run(
            ledger.claim(StepRef("acme", message.execution_id, "prompt"), lease_s=0.2, worker=resources.worker)
        )
        assert isinstance(claim, Claimed)

        async def step() -> None:
            async with resources.leases.keep(claim.hold):
                await asyncio.sleep(60)

        running = asyncio.create_task(step())
        done, _ = await asyncio.wait([running], timeout=0.4)
        assert not done, "its lease is renewed"
        assert await resources.store.run(ledger.renew([claim.hold], lease_s=1)) == ["held"]
        worker_shutting_down.send(sender="w", sig="TERM", how="Warm", exitcode=0)
        with pytest.raises(HandBack):
            await asyncio.wait_for(running, 5)
    held = resources.store.redis.connection_pool
    assert not held._in_use_connections
    assert worker_shutting_down.send(sender="w", sig="TERM", how="Warm", exitcode=0) == []


async def test_what_is_open_is_closed_when_the_next_cannot_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key with a line\nin it")
    with pytest.raises(SettingsInvalid, match="OPENAI_API_KEY"):
        async with lifespan(None):
            raise AssertionError("opened")


async def test_a_worker_whose_duty_breaks_stops(
    redis_url: str, async_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: stopped.append((pid, number)))
    await async_store.redis.set(keys.pending(), "not a sorted set")
    async with lifespan(None):
        while not stopped:
            await asyncio.sleep(0.01)
    assert stopped == [(os.getpid(), signal.SIGTERM)]
    await async_store.redis.delete(keys.pending())
