"""All tools that there are, from wherever they come: the Tool Registry, and the MCP servers of the settings.

Owns the boundary that each source of tools keeps, and which source a tool is of: `<server>__<tool>` is a server's, all else
is the registry's. Does not know how any of them is asked, nor when a tool may be called.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from agent_exec.configuration import FIRST, Edition
from agent_exec.contract.tool import ToolDefinition, ToolError, ToolExecution, ToolResult
from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings

#: Between the name of a server and its own name of a tool.
SEPARATOR = "__"


class ToolSource(Protocol):
    """Lists the tools that an agent may be offered, and runs one."""

    async def tools(self, tenant_id: str, agent_id: str, *, edition: Edition = FIRST) -> Sequence[ToolDefinition]:
        """Return the tools that an agent may be offered.

        Raises:
            NeighbourError: the source failed us.
        """
        ...

    async def execute(
        self, name: str, call: ToolExecution, *, idempotency_key: str, timeout_s: float
    ) -> ToolResult | ToolError:
        """Run a tool once; what it says against the call is a value, for the model to read.

        Raises:
            NeighbourUnavailable: no answer; unless it went `unheard` the tool may have run.
            NeighbourRefused: an answer that is no use to us.
        """
        ...


class Tools:
    """The registry, and the servers by their names."""

    def __init__(self, registry: ToolSource, servers: Mapping[str, ToolSource]) -> None:
        """Take the sources."""
        self._registry = registry
        self._servers = servers

    async def offered(
        self, tenant_id: str, agent_id: str, names: Sequence[str], *, edition: Edition = FIRST
    ) -> dict[str, ToolDefinition]:
        """Return those of the tools `names` that the agent may be offered. Only sources that are named are asked.

        Raises:
            NeighbourError: a source failed us.
        """
        sources = dict.fromkeys(self._source(name) for name in names)
        try:
            async with asyncio.TaskGroup() as asking:
                listing = {
                    source: asking.create_task(_listed(source, tenant_id, agent_id, edition)) for source in sources
                }
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        # What a source lists under a name that is another's is not to be had.
        return {
            tool.name: tool
            for source, listed in listing.items()
            for tool in listed.result()
            if tool.name in names and self._source(tool.name) is source
        }

    async def execute(
        self, name: str, call: ToolExecution, *, idempotency_key: str, timeout_s: float
    ) -> ToolResult | ToolError:
        """Run a tool once, as `ToolSource.execute` does."""
        return await self._source(name).execute(name, call, idempotency_key=idempotency_key, timeout_s=timeout_s)

    def _source(self, name: str) -> ToolSource:
        server, separator, _ = name.partition(SEPARATOR)
        return self._servers.get(server, self._registry) if separator else self._registry


async def _listed(source: ToolSource, tenant_id: str, agent_id: str, edition: Edition) -> Sequence[ToolDefinition]:
    return await source.tools(tenant_id, agent_id, edition=edition)


@contextlib.asynccontextmanager
async def open_tools(registry: ToolSource, settings: Settings) -> AsyncIterator[Tools]:
    """Open the connections to the servers of the settings, beside the registry.

    Raises:
        SettingsInvalid: there are servers, and the SDK that speaks with them is not installed.
    """
    async with contextlib.AsyncExitStack() as stack:
        servers: dict[str, ToolSource] = {}
        if settings.mcp_servers:
            try:  # only here: it takes a second and 20 MB that few need
                from tasks.neighbours.mcp import McpTools
            except ModuleNotFoundError as error:
                raise SettingsInvalid(
                    f"AGENT_EXEC_MCP_SERVERS names servers, and {error.name} is not installed: install the extra 'mcp'."
                ) from None
            for name, server in settings.mcp_servers.items():
                servers[name] = await stack.enter_async_context(
                    McpTools(name, server, ttl_s=settings.config_ttl_s, timeout_s=settings.neighbour_timeout_s)
                )
        yield Tools(registry, servers)
