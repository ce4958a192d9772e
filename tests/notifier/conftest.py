"""A notifier, the orchestrator it notifies, and work to tell of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from agent_exec.settings import Settings, read_settings
from agent_exec.store import Store
from notifier.notifier import Notifier
from tests.notifier.played_orchestrator import Orchestrator
from tests.notifier.played_work import Work

TOKEN = "the-service-token-of-a-test"
Notifying = Callable[..., AbstractAsyncContextManager[Notifier]]


@pytest.fixture
async def orchestrator() -> AsyncIterator[Orchestrator]:
    """An orchestrator that is up, and acknowledges nothing."""
    one = Orchestrator()
    async with one.listening():
        yield one


@pytest.fixture
def work(async_store: Store) -> Work:
    """What makes executions."""
    return Work(async_store)


@pytest.fixture
def settings(redis_url: str, orchestrator: Orchestrator) -> Settings:
    """A notifier's settings, with short pauses."""
    return read_settings(
        redis_url=redis_url,
        orchestrator_ws_url=orchestrator.url,
        service_token=TOKEN,
        notifier_backoff_cap_s=0.05,
        notifier_lease_s=1.0,
    )


@pytest.fixture
def notifying(settings: Settings) -> Notifying:
    """A notifier that runs inside of an `async with`, and drains at its end."""

    @asynccontextmanager
    async def run(holder: str = "one", **changes: object) -> AsyncIterator[Notifier]:
        own = settings.model_copy(update=changes)
        store = Store(own.redis_url or "")
        notifier = Notifier(own, store=store, holder=holder)
        running = asyncio.create_task(notifier.run())
        try:
            yield notifier
        finally:
            notifier.stop()
            await running
            await store.aclose()

    return run
