"""What every step of a process works with, opened on the pool's loop and closed with it.

Owns the order of opening and closing, and the two background duties: heartbeats and upkeep. Does not know any step.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from celery.signals import worker_shutting_down

from agent_exec.embedded import redis_url
from agent_exec.settings import Settings, read_settings
from agent_exec.store import Store
from providers.catalog import Providers
from tasks.leases import Leases
from tasks.neighbours.http import Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.orchestrator import Orchestrator
from tasks.neighbours.registry import ToolRegistry
from tasks.shares import Shares
from tasks.upkeep import keep_up

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resources:
    """Settings, the store, the leases, the neighbours and the providers."""

    settings: Settings
    store: Store
    leases: Leases
    shares: Shares
    providers: Providers
    management: AgentManagement
    registry: ToolRegistry
    orchestrator: Orchestrator
    worker: str


@contextlib.asynccontextmanager
async def open_resources(_app: Any) -> AsyncIterator[Resources]:
    """Open all of it, for as long as the worker's loop runs (`worker_lifespan` in celeryconfig.py)."""
    settings = read_settings()
    async with contextlib.AsyncExitStack() as stack:
        store = Store(redis_url(settings))
        stack.push_async_callback(store.aclose)
        providers = Providers(settings)
        stack.push_async_callback(providers.aclose)
        management, registry, orchestrator = [
            await stack.enter_async_context(_neighbour(settings, name, url))
            for name, url in (
                ("Agent Management", settings.agent_management_url),
                ("Tool Registry", settings.tool_registry_url),
                ("Orchestrator", settings.orchestrator_url),
            )
        ]
        leases = Leases(store, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s)
        for duty in (leases.beat(), keep_up(store)):
            await stack.enter_async_context(_background(duty))
        stack.enter_context(_handing_back(leases, after_s=settings.shutdown_grace_s))
        yield Resources(
            settings=settings,
            store=store,
            leases=leases,
            shares=Shares(store, keep_s=settings.open_retention_s),
            providers=providers,
            management=AgentManagement(management, ttl_s=settings.config_ttl_s),
            registry=ToolRegistry(registry, ttl_s=settings.config_ttl_s),
            orchestrator=Orchestrator(orchestrator),
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )


def _neighbour(settings: Settings, name: str, url: str) -> Neighbour:
    return Neighbour(name, url, token=settings.service_token.get_secret_value(), timeout_s=settings.neighbour_timeout_s)


@contextlib.asynccontextmanager
async def _background(duty: Any) -> AsyncIterator[None]:
    """Do a duty while open. A worker that cannot do it is no worker: it stops, and its supervisor starts another."""
    task = asyncio.create_task(duty)
    task.add_done_callback(_stop_worker_if_broken)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _stop_worker_if_broken(duty: asyncio.Task[Any]) -> None:
    if not duty.cancelled() and duty.exception() is not None:
        log.critical("a background duty broke; the worker stops", exc_info=duty.exception())
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _handing_back(leases: Leases, *, after_s: float) -> Iterator[None]:
    """While open: a worker that is asked to stop gives its steps so long to finish, and hands back the rest."""
    loop = asyncio.get_running_loop()

    def on_shutting_down(**_: Any) -> None:  # in the main thread
        loop.call_soon_threadsafe(loop.call_later, after_s, leases.hand_back)

    worker_shutting_down.connect(on_shutting_down)
    try:
        yield
    finally:
        worker_shutting_down.disconnect(on_shutting_down)
