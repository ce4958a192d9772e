"""The Tool Registry: the tools of an agent, and the running of one.

Owns the paths and the meaning of the answers. Does not know when a tool may be called, nor what is done with its result.
"""

from __future__ import annotations

import time

from pydantic import ValidationError

from agent_exec.configuration import FIRST, Edition
from agent_exec.contract.tool import ToolDefinition, ToolError, ToolExecution, ToolFailure, ToolList, ToolResult
from agent_exec.errors import NeighbourRefused
from agent_exec.submission import complaints
from tasks.neighbours.http import Neighbour

#: Bounds the cache's memory; the oldest entry goes first.
MAX_CACHED = 10_000


class ToolRegistry:
    """The client of the Tool Registry."""

    def __init__(self, neighbour: Neighbour, *, ttl_s: float) -> None:
        """Take the connection, and how long a list of tools is used before it is asked for again."""
        self._neighbour = neighbour
        self._ttl_s = ttl_s
        self._cache: dict[str, tuple[str, float, list[ToolDefinition]]] = {}

    async def tools(self, tenant_id: str, agent_id: str, *, edition: Edition = FIRST) -> list[ToolDefinition]:
        """Return the tools that an agent may be offered.

        Raises:
            NeighbourError: the registry failed us.
        """
        path = f"/v1/tenants/{tenant_id}/agents/{agent_id}/tools"
        cached, fresh_until, tools = self._cache.get(path, ("", 0.0, []))
        if cached == edition.agent and time.monotonic() < fresh_until:
            return tools
        answer = await self._neighbour.ask("GET", path)
        if answer.status != 200:
            raise NeighbourRefused(
                f"{self._neighbour.name} answered {answer.status} to GET {path}; check AGENT_EXEC_SERVICE_TOKEN.",
                neighbour=self._neighbour.name,
            )
        try:
            tools = ToolList.model_validate_json(answer.body).tools
        except ValidationError as error:
            raise NeighbourRefused(
                f"{self._neighbour.name} listed tools that break the contract: {complaints(error)}.",
                neighbour=self._neighbour.name,
            ) from None
        if len(self._cache) >= MAX_CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[path] = (edition.agent, time.monotonic() + self._ttl_s, tools)
        return tools

    async def execute(
        self, name: str, call: ToolExecution, *, idempotency_key: str, timeout_s: float
    ) -> ToolResult | ToolError:
        """Run a tool once; what it says against the call is a value, for the model to read.

        Raises:
            NeighbourUnavailable: no answer. The tool may have run: `idempotency_key` lets it be asked again.
        """
        answer = await self._neighbour.ask(
            "POST",
            f"/v1/tools/{name}/execute",
            body=call.model_dump_json().encode(),
            headers={"Idempotency-Key": idempotency_key, "X-Tenant-Id": call.tenant_id},
            timeout_s=timeout_s,
        )
        try:
            if answer.status == 200:
                return ToolResult.model_validate_json(answer.body)
            return ToolFailure.model_validate_json(answer.body).error
        except ValidationError:
            return ToolError(
                code="tool_protocol", message=f"The tool '{name}' answered {answer.status} with no valid JSON result."
            )
