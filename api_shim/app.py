"""The application: every operation in one table, and what stands around them.

    uvicorn api_shim.app:app

Owns the table and the order of what wraps it. Importing it touches neither environment nor network; both come with the
lifespan.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from agent_exec import logs
from agent_exec.contract.approval import Approval, ApprovalAnswer
from agent_exec.contract.event import Frame
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
from agent_exec.contract.spending import TenantUsage
from agent_exec.errors import AgentExecError
from agent_exec.settings import Settings, read_settings
from api_shim import approval, conversation, event_stream, executions, health, internal, openapi
from api_shim.counters import Counters
from api_shim.observed import Observed
from api_shim.operation import Operation
from api_shim.problem import Refused, problem_response
from api_shim.shim import Shim, opened

OPERATIONS: list[Operation] = [
    Operation(
        method="POST",
        path="/v1/executions",
        function=executions.submit,
        parameters=executions.SubmitParameters,
        body=ExecutionRequest,
        answers={202: executions.Accepted, 200: FinalResponse},
    ),
    Operation(
        method="GET",
        path="/v1/executions",
        function=executions.list_newest,
        parameters=executions.ListParameters,
        answers={200: executions.ExecutionList},
    ),
    Operation(
        method="GET",
        path="/v1/executions/{execution_id}",
        function=executions.show,
        answers={200: ExecutionView},
    ),
    Operation(
        method="GET",
        path="/v1/executions/{execution_id}/events",
        function=event_stream.stream,
        parameters=event_stream.ResumeParameters,
        answers={200: "text/event-stream"},
    ),
    Operation(
        method="WEBSOCKET",
        path="/v1/executions/{execution_id}/ws",
        function=conversation.converse,
        parameters=conversation.ConverseParameters,
        answers={101: Frame},
    ),
    Operation(
        method="POST",
        path="/v1/executions/{execution_id}/cancel",
        function=executions.cancel,
        answers={202: executions.CancelAnswer},
    ),
    Operation(
        method="GET",
        path="/internal/v1/tenants/{tenant_id}/usage",
        function=internal.tenant_usage,
        role="service",
        parameters=internal.UsageParameters,
        answers={200: TenantUsage},
    ),
    Operation(
        method="POST",
        path="/internal/v1/cache/invalidate",
        function=internal.invalidate_configuration,
        role="service",
        body=internal.Invalidation,
        answers={200: internal.Invalidated},
    ),
    Operation(
        method="POST",
        path="/v1/executions/{execution_id}/tool-calls/{tool_call_id}/approval",
        function=approval.resolve,
        body=Approval,
        answers={200: ApprovalAnswer},
    ),
    Operation(method="GET", path="/health/live", function=health.live, role=None, answers={200: health.Health}),
    Operation(method="GET", path="/health/ready", function=health.ready, role=None, answers={200: health.Health}),
    Operation(method="GET", path="/metrics", function=health.metrics, role=None, answers={200: "text/plain"}),
]


class LifespanState(TypedDict):
    """What every request finds in its state."""

    shim: Shim


def create_app(settings: Settings | None = None) -> Starlette:
    """Return the application; without `settings`, the environment is read when it starts."""
    counters = Counters()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[LifespanState]:
        read = settings or read_settings()
        logs.configure(read, "shim")
        # observed.py writes one line a request, with more in it and no query: somebody may put a key there.
        logging.getLogger("uvicorn.access").disabled = True
        logging.getLogger("uvicorn.error").addFilter(_is_no_socket_line)
        async with opened(read, counters) as shim:
            yield {"shim": shim}

    app = Starlette(
        routes=[
            *[operation.route() for operation in OPERATIONS],
            openapi.route(OPERATIONS),
        ],
        middleware=[Middleware(Observed, counters=counters)],
        exception_handlers={AgentExecError: _told, Refused: _told, HTTPException: _told},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would name the host that the client claims
    return app


def _is_no_socket_line(record: logging.LogRecord) -> bool:
    """Tell uvicorn's lines on single sockets: paths with their query, and that a refused one was not accepted."""
    return '"WebSocket %s"' not in str(record.msg) and "without completing handshake" not in str(record.msg)


async def _told(_: Request, error: Exception) -> Response:
    return problem_response(error)


app = create_app()
