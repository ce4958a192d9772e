"""Agent Management: tenants and the configuration of their agents, cached with their ETag.

Owns the paths, the cache and its age. Does not know what a configuration is used for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from agent_exec.configuration import FIRST, Edition
from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.errors import AgentNotFound, NeighbourRefused, TenantNotFound
from agent_exec.submission import complaints
from tasks.neighbours.http import Neighbour

M = TypeVar("M", bound=BaseModel)

#: Bounds the cache's memory; the oldest entry goes first.
MAX_CACHED = 10_000


@dataclass(slots=True)
class _Cached(Generic[M]):
    model: M
    etag: str | None
    edition: str
    fresh_until: float


class AgentManagement:
    """The client of Agent Management. Cached per path, and a path names the tenant: no entry serves two.

    An entry is used as long as its time lasts and its edition is the one that is asked for.
    """

    def __init__(self, neighbour: Neighbour, *, ttl_s: float) -> None:
        """Take the connection, and how long an answer is used before it is asked for again."""
        self._neighbour = neighbour
        self._ttl_s = ttl_s
        self._cache: dict[str, _Cached[BaseModel]] = {}

    async def tenant(self, tenant_id: str, *, edition: Edition = FIRST) -> Tenant:
        """Return a tenant.

        Raises:
            TenantNotFound: there is none of this id.
            NeighbourError: Agent Management failed us.
        """
        missing = TenantNotFound(f"Tenant '{tenant_id}': Agent Management knows no such tenant; create it there first.")
        return await self._get(f"/v1/tenants/{tenant_id}", Tenant, missing, edition.tenant)

    async def agent(self, tenant_id: str, agent_id: str, *, edition: Edition = FIRST) -> AgentConfig:
        """Return an agent's configuration.

        Raises:
            AgentNotFound: this tenant has no such agent.
            NeighbourError: Agent Management failed us.
        """
        missing = AgentNotFound(
            f"Agent '{agent_id}': Agent Management knows no such agent of tenant '{tenant_id}'; check the id, or send "
            "the whole configuration in payload.agent_config."
        )
        return await self._get(f"/v1/tenants/{tenant_id}/agents/{agent_id}", AgentConfig, missing, edition.agent)

    async def _get(self, path: str, model: type[M], missing: Exception, edition: str) -> M:
        cached = self._cache.get(path)
        if cached is not None and cached.edition == edition and time.monotonic() < cached.fresh_until:
            return cached.model  # type: ignore[return-value]  # a path has one model
        known = {"If-None-Match": cached.etag} if cached is not None and cached.etag else {}
        answer = await self._neighbour.ask("GET", path, headers=known)
        if answer.status == 304 and cached is not None:
            cached.edition, cached.fresh_until = edition, time.monotonic() + self._ttl_s
            return cached.model  # type: ignore[return-value]  # a path has one model
        if answer.status == 404:
            self._cache.pop(path, None)
            raise missing
        if answer.status != 200:
            raise NeighbourRefused(
                f"{self._neighbour.name} answered {answer.status} to GET {path}; check AGENT_EXEC_SERVICE_TOKEN.",
                neighbour=self._neighbour.name,
            )
        try:
            found = model.model_validate_json(answer.body)
        except ValidationError as error:
            raise NeighbourRefused(
                f"{self._neighbour.name} answered GET {path} with what breaks the contract: {complaints(error)}.",
                neighbour=self._neighbour.name,
            ) from None
        if len(self._cache) >= MAX_CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[path] = _Cached(found, answer.etag, edition, time.monotonic() + self._ttl_s)
        return found
