"""What every step of a process works with, opened on the pool's loop and closed with it.

Owns the order of opening and closing. Does not know any step, nor what a worker does beside its steps: lifespan.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent_exec.callbacks.door import Door
from agent_exec.embedded import redis_url
from agent_exec.service_token import ServiceToken
from agent_exec.settings import Settings
from agent_exec.store import Store
from providers.catalog import Providers
from providers.gate import Gate
from tasks.batches import Feeder
from tasks.leases import Leases
from tasks.links import Sender
from tasks.neighbours.http import Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.orchestrator import Orchestrator
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import Tools, open_tools
from tasks.quarantine import Quarantine
from tasks.shares import Shares
from tasks.token_stream import Teller


@dataclass(frozen=True, slots=True)
class Resources:
    """Settings, the store, the leases, the teller of tokens, the neighbours, the providers and the gate to
    them; what callbacks are accepted by; the sender of what follows an execution in a canvas; and the feeder of batches.
    """

    settings: Settings
    store: Store
    leases: Leases
    teller: Teller
    quarantine: Quarantine
    shares: Shares
    providers: Providers
    gate: Gate
    management: AgentManagement
    tools: Tools
    orchestrator: Orchestrator
    callbacks: Door
    links: Sender
    batches: Feeder
    worker: str


@contextlib.asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open all of it."""
    async with contextlib.AsyncExitStack() as stack:
        store = Store(redis_url(settings))
        stack.push_async_callback(store.aclose)
        providers = Providers(settings)
        stack.push_async_callback(providers.aclose)
        token = ServiceToken(settings)
        token.check()
        management, registry, orchestrator = [
            await stack.enter_async_context(
                Neighbour(name, url, token=token.current, timeout_s=settings.neighbour_timeout_s)
            )
            for name, url in (
                ("Agent Management", settings.agent_management_url),
                ("Tool Registry", settings.tool_registry_url),
                ("Orchestrator", settings.orchestrator_url),
            )
        ]
        tools = await stack.enter_async_context(
            open_tools(ToolRegistry(registry, ttl_s=settings.config_ttl_s), settings)
        )
        yield Resources(
            settings=settings,
            store=store,
            leases=Leases(store, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s),
            teller=Teller(store, flush_ms=settings.token_flush_ms, flush_bytes=settings.token_flush_bytes),
            quarantine=Quarantine(),
            shares=Shares(store, keep_s=settings.open_retention_s),
            providers=providers,
            gate=Gate(store, probe_lease_s=settings.provider_first_token_timeout_s),
            management=AgentManagement(management, ttl_s=settings.config_ttl_s),
            tools=tools,
            orchestrator=Orchestrator(orchestrator),
            callbacks=Door.of_service(settings),
            links=Sender(store, retention_s=settings.retention_s),
            batches=Feeder(store, settings),
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )
