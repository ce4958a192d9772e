"""A real MCP server, of the protocol's own SDK: `python -m tests.tasks.mcp_server PORT modern|legacy`.

`legacy` knows only the handshake of before 2026, with its sessions. Its tools tell what reached them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Scope = MutableMapping[str, Any]

server = MCPServer("played", log_level="ERROR")
#: What each tool with an effect has done, by the key that it was asked under.
effects: list[dict[str, str | None]] = []
#: Requests by the method of the protocol, as the header says; legacy clients send none.
methods: list[str] = []


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(annotations=ToolAnnotations(idempotent_hint=True), structured_output=False)
def store(text: str) -> str:
    """Store a text."""
    return f"stored {text}"


@server.tool(structured_output=False)
def send(text: str, context: Context) -> str:
    """Send a text."""
    assert context.headers is not None
    effects.append({name: context.headers.get(name) for name in ("idempotency-key", "x-tenant-id", "authorization")})
    return f"sent {text}"


@server.tool(structured_output=False)
async def send_and_hang(context: Context) -> str:
    """Send, and never say so."""
    assert context.headers is not None
    effects.append({"idempotency-key": context.headers.get("idempotency-key")})
    await asyncio.sleep(60)
    return "late"


@server.tool()
def die() -> str:
    """Take the server down."""
    os._exit(1)


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("the drawer is stuck")


@server.tool(structured_output=False)
def look() -> list[Any]:
    """Show two things."""
    return ["a cat", Image(data=b"GIF89a" * 100, format="gif")]


@server.tool(structured_output=False)
def write(chars: int) -> str:
    """Write much."""
    return "x" * chars


@server.tool(name="not.a.name")
def unnameable() -> str:
    """Have a name that no model may be given."""
    return ""


@server.custom_route("/seen", methods=["GET"])
async def seen(_: Request) -> Response:
    """Tell what has come."""
    return JSONResponse({"effects": effects, "methods": methods})


def counted(app: Any, *, legacy: bool) -> Callable[[Scope, Any, Any], Awaitable[None]]:
    """Count what comes; a legacy server knows nothing of the newer protocol's discovery."""

    async def serve(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/mcp":
            method = dict(scope["headers"]).get(b"mcp-method", b"").decode() or scope["method"]
            methods.append(method)
            if legacy and method == "server/discover":
                await Response("what?", status_code=400)(scope, receive, send)
                return
        await app(scope, receive, send)

    return serve


if __name__ == "__main__":
    port, era = sys.argv[1:]
    uvicorn.run(
        counted(server.streamable_http_app(), legacy=era == "legacy"),
        host="127.0.0.1",
        port=int(port),
        log_level="error",
    )
