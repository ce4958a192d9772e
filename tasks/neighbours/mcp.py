"""Tools of a server that speaks the Model Context Protocol over streamable HTTP, through the protocol's own SDK.

Owns what a tool and an answer there are in our words, the names (`<server>__<tool>`), the cache, and the bounds of time and
size under the SDK. A session lasts for one question, so that nothing of one tenant is there when another's begins;
connections outlive it. Servers that are started as processes (stdio) are not spoken with: a service has no place for them.
Does not know when a tool may be called.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import structlog
from mcp import Client, ClientSession, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CONNECTION_CLOSED,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    DiscoverResult,
    EmbeddedResource,
    PaginatedRequestParams,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
)
from pydantic import ValidationError

from agent_exec.configuration import FIRST, Edition
from agent_exec.contract.tool import (
    MAX_ERROR_CHARS,
    ToolDefinition,
    ToolError,
    ToolExecution,
    ToolResult,
)
from agent_exec.errors import NeighbourRefused, NeighbourUnavailable
from agent_exec.settings import McpServer
from agent_exec.submission import complaints
from tasks.neighbours.http import CONNECT_TIMEOUT_S, KEEP_ALIVE_S, MAX_ANSWER_BYTES, retry_after_s
from tasks.neighbours.tools import SEPARATOR

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: A list that goes on for longer has no end.
MAX_PAGES = 20
#: Bounds the cache's memory, tenant by tenant; the oldest entry goes first.
MAX_CACHED = 1_000


class McpTools:
    """The client of one server. Entered and left in the running loop that it serves."""

    def __init__(self, name: str, server: McpServer, *, ttl_s: float, timeout_s: float) -> None:
        """Take the server's name and address, how long a list is used unasked, and the server's time to give one."""
        self.name = name
        self._server = server
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._http = httpx2.AsyncHTTPTransport(
            trust_env=False, limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S)
        )
        self._cache: dict[str, tuple[str, float, list[ToolDefinition]]] = {}
        #: How the server was last found to negotiate, and what it then said of itself, which saves asking again.
        self._mode = "auto"
        self._discovered: DiscoverResult | None = None

    async def tools(self, tenant_id: str, agent_id: str, *, edition: Edition = FIRST) -> Sequence[ToolDefinition]:
        """Return the server's tools, if the tenant may be offered them."""
        if not self._serves(tenant_id):
            return []
        cached, fresh_until, tools = self._cache.get(tenant_id, ("", 0.0, []))
        if cached == edition.tenant and time.monotonic() < fresh_until:
            return tools
        try:
            found = await self._ask(_list_all, tenant_id, timeout_s=self._timeout_s)
        except MCPError as error:
            raise self._refused(f"refuses to list its tools: {error.message[:500]}") from error
        tools = [definition for tool in found if (definition := self._definition(tool)) is not None]
        if len(self._cache) >= MAX_CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[tenant_id] = (edition.tenant, time.monotonic() + self._ttl_s, tools)
        return tools

    async def execute(
        self, name: str, call: ToolExecution, *, idempotency_key: str, timeout_s: float
    ) -> ToolResult | ToolError:
        """Run a tool once. The key goes as a header, and in the call's `_meta`."""
        if not self._serves(call.tenant_id):
            return ToolError(code="unknown_tool", message=f"There is no tool '{name}' here.")
        params = CallToolRequestParams(
            name=name.removeprefix(f"{self.name}{SEPARATOR}"),
            arguments=call.arguments,
            _meta={"agent-exec/idempotency-key": idempotency_key, "agent-exec/execution-id": call.execution_id},  # type: ignore[arg-type]
        )

        async def ask(session: ClientSession) -> CallToolResult:
            # Not `session.call_tool`: that lists all tools anew, to check a result that is only shown to the model.
            return await session.send_request(CallToolRequest(params=params), CallToolResult)

        try:
            return _outcome(await self._ask(ask, call.tenant_id, timeout_s=timeout_s, idempotency_key=idempotency_key))
        except MCPError as error:
            return ToolError(code="tool_protocol", message=f"{error.code}: {error.message}"[:MAX_ERROR_CHARS])
        except ValidationError:
            return ToolError(code="tool_protocol", message=f"The tool '{name}' answered with no valid result.")

    def _serves(self, tenant_id: str) -> bool:
        return not self._server.tenants or tenant_id in self._server.tenants

    def _definition(self, tool: Tool) -> ToolDefinition | None:
        """The tool in our words. What its server says of its effects is believed: the settings would not name it else."""
        hints, effect = tool.annotations, "effect"
        if hints is not None and (hints.read_only_hint or hints.idempotent_hint):
            effect = "read" if hints.read_only_hint else "idempotent"
        try:
            return ToolDefinition.model_validate(
                {
                    "name": f"{self.name}{SEPARATOR}{tool.name}",
                    "description": (tool.description or "")[:4_096],
                    "parameters": tool.input_schema,
                    "effect": effect,
                    "timeout_s": self._server.timeout_s,
                    "requires_approval": self._server.requires_approval and effect != "read",
                }
            )
        except ValidationError as error:
            log.warning("tool left out", server=self.name, tool=tool.name[:64], reason=complaints(error))
            return None

    async def _ask(
        self,
        ask: Callable[[ClientSession], Awaitable[T]],
        tenant_id: str,
        *,
        timeout_s: float,
        idempotency_key: str = "",
    ) -> T:
        """Open a session, ask, and close it.

        Raises:
            MCPError: the server's own answer against what was asked.
            ValidationError: its answer is not of the protocol.
            NeighbourError: as `ToolSource` says.
        """
        token = self._server.token.get_secret_value()
        headers = {"X-Tenant-Id": tenant_id, "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        wire = _Wire(self._http, name=self.name)
        answers: list[T] = []
        try:
            async with (
                asyncio.timeout(timeout_s),
                httpx2.AsyncClient(
                    transport=wire,
                    headers=headers,
                    timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
                    trust_env=False,
                ) as http,
                Client(
                    streamable_http_client(self._server.url, http_client=http, max_sse_event_size=MAX_ANSWER_BYTES),
                    mode=self._mode,
                    prior_discover=self._discovered,
                    cache=None,
                ) as client,
            ):
                self._discovered = client.session.discover_result
                self._mode = "legacy" if self._discovered is None else client.protocol_version
                wire.asking = True
                answers.append(await ask(client.session))
        except Exception as error:  # whatever one of the SDK's tasks died of
            if not answers:
                self._mode, self._discovered = "auto", None
                raise self._failure(error, wire) from error
            log.debug("session not closed", server=self.name, reason=type(error).__name__)
        return answers[0]

    def _failure(self, error: Exception, wire: _Wire) -> Exception:
        if wire.fault is not None:
            return wire.fault
        match _first(error):
            case TimeoutError():
                reason = "did not answer in time"
            case MCPError(code=code) as said if code != CONNECTION_CLOSED:
                return said
            case ValidationError() as said:
                return said
            case _:
                reason = "broke the connection off"
        return NeighbourUnavailable(
            f"The MCP server '{self.name}' {reason}.", neighbour=self.name, unheard=not wire.asking
        )

    def _refused(self, said: str) -> NeighbourRefused:
        return NeighbourRefused(f"The MCP server '{self.name}' {said}.", neighbour=self.name)

    async def __aenter__(self) -> Self:
        """Return itself."""
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._http.__aexit__(kind, error, trace)


class _Wire(httpx2.AsyncBaseTransport):
    """One session's requests, on connections that outlive it. Keeps the first fault, which the SDK would tell less of."""

    def __init__(self, http: httpx2.AsyncHTTPTransport, *, name: str) -> None:
        self._http = http
        self._name = name
        self.asking = False
        self.fault: NeighbourRefused | NeighbourUnavailable | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._http.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._unavailable(f"cannot be reached ({type(error).__name__})", request, unheard=True) from error
        except httpx2.TransportError as error:
            raise self._unavailable(f"broke off ({type(error).__name__})", request) from error
        status, headers = response.status_code, response.headers
        try:
            if status == 429 or status >= 500:
                pause_s = retry_after_s(headers.get("retry-after"))
                raise self._unavailable(f"answered {status}", request, unheard=status == 429, retry_after_s=pause_s)
            if 300 <= status < 400:
                raise self._refused("redirects, which is never followed", request)
            if status in (401, 403):
                raise self._refused(f"answered {status}; check its token in AGENT_EXEC_MCP_SERVERS", request)
            if headers.get("content-encoding", "identity") != "identity":
                raise self._refused("packs its answers, which was not asked for", request)
        except httpx2.TransportError:
            await response.aclose()
            raise
        response.stream = _Bounded(
            response.stream, lambda: self._refused(f"said over {MAX_ANSWER_BYTES} bytes", request)
        )
        return response

    def _unavailable(
        self, said: str, request: httpx2.Request, *, unheard: bool = False, retry_after_s: float | None = None
    ) -> httpx2.TransportError:
        fault = NeighbourUnavailable(
            f"The MCP server '{self._name}' {said}; it is asked again later.",
            neighbour=self._name,
            unheard=unheard or not self.asking,
            retry_after_s=retry_after_s,
        )
        return self._kept(fault, request)

    def _refused(self, said: str, request: httpx2.Request) -> httpx2.TransportError:
        return self._kept(NeighbourRefused(f"The MCP server '{self._name}' {said}.", neighbour=self._name), request)

    def _kept(self, fault: NeighbourRefused | NeighbourUnavailable, request: httpx2.Request) -> httpx2.TransportError:
        # Whether a stream of news (GET) or a goodbye (DELETE) went well decides nothing.
        if request.method == "POST" and self.fault is None:
            self.fault = fault
        return httpx2.TransportError(str(fault))

    async def aclose(self) -> None:
        """Leave the connections to the sessions to come."""


class _Bounded(httpx2.AsyncByteStream):
    """A body that is read so far and no further."""

    def __init__(self, body: Any, too_long: Callable[[], httpx2.TransportError]) -> None:
        self._body = body
        self._too_long = too_long

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._body:
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise self._too_long()
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()


async def _list_all(session: ClientSession) -> list[Tool]:
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _first(error: Exception) -> Exception:
    """The error itself: the SDK's task groups wrap it, each of them once more."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _outcome(result: CallToolResult) -> ToolResult | ToolError:
    """The answer in our words: its structure, if it has one, else its texts.

    Raises:
        ValidationError: it holds what may not cross our borders.
    """
    if result.is_error:
        texts = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
        return ToolError(
            code="tool_error", message=(texts or "The tool failed, and does not say why.")[:MAX_ERROR_CHARS]
        )
    if result.structured_content is not None:
        return ToolResult.model_validate({"result": result.structured_content})
    blocks = [_plain(block) for block in result.content]
    return ToolResult.model_validate({"result": blocks[0] if len(blocks) == 1 else blocks})


def _plain(block: Any) -> Any:
    """A block of content as JSON. Pictures and sounds are named and left out: no model is shown them here."""
    match block:
        case TextContent(text=text) | EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case ResourceLink():
            return {"type": "resource_link", "uri": str(block.uri), "name": block.name}
        case _:
            return {"type": block.type, "left_out": "no text"}
