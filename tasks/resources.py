"""What every step of a process works with, opened on the pool's loop and closed with it.

Owns the order of opening and closing. Does not know any step, nor what a worker does beside its steps: lifespan.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent_exec.embedded import redis_url
from agent_exec.settings import Settings
from agent_exec.store import Store
from providers.catalog import Providers
from providers.gate import Gate
from tasks.leases import Leases
from tasks.neighbours.http import Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.orchestrator import Orchestrator
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import Tools, open_tools
from tasks.quarantine import Quarantine
from tasks.shares import Shares


@dataclass(frozen=True, slots=True)
class Resources:
    """Settings, the store, the leases, the neighbours, the providers and the gate to them."""

    settings: Settings
    store: Store
    leases: Leases
    quarantine: Quarantine
    shares: Shares
    providers: Providers
    gate: Gate
    management: AgentManagement
    tools: Tools
    orchestrator: Orchestrator
    worker: str


@contextlib.asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open all of it."""
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
        tools = await stack.enter_async_context(
            open_tools(ToolRegistry(registry, ttl_s=settings.config_ttl_s), settings)
        )
        yield Resources(
            settings=settings,
            store=store,
            leases=Leases(store, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s),
            quarantine=Quarantine(),
            shares=Shares(store, keep_s=settings.open_retention_s),
            providers=providers,
            gate=Gate(store, probe_lease_s=settings.provider_first_token_timeout_s),
            management=AgentManagement(management, ttl_s=settings.config_ttl_s),
            tools=tools,
            orchestrator=Orchestrator(orchestrator),
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )


def _neighbour(settings: Settings, name: str, url: str) -> Neighbour:
    return Neighbour(name, url, token=settings.service_token.get_secret_value(), timeout_s=settings.neighbour_timeout_s)
