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
from agent_exec.contract.batch import BatchList, BatchRequest, BatchView
from agent_exec.contract.callback import CallbackList, CallbackView
from agent_exec.contract.event import Frame
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
from agent_exec.contract.schedule import ScheduleList, ScheduleRequest, ScheduleView
from agent_exec.contract.spending import TenantUsage
from agent_exec.errors import (
    AgentExecError,
    AlreadyDelivered,
    AlreadyResolved,
    CallbacksNotConfigured,
    CallbackUrlInvalid,
    Conflict,
    Forbidden,
    NotAwaitingApproval,
    QueueFull,
    StorageFull,
    StorageUnavailable,
    TooManyBatches,
    TooManySchedules,
    TooManyStreams,
)
from agent_exec.settings import Settings, read_settings
from api_shim import (
    approval,
    batch_body,
    batches,
    callbacks,
    chat_completions,
    chat_wire,
    conversation,
    docs_page,
    event_stream,
    executions,
    health,
    internal,
    openapi,
    schedules,
)
from api_shim.cors import Cors
from api_shim.counters import Counters
from api_shim.observed import Observed
from api_shim.operation import Conditional, Operation, routes
from api_shim.problem import PROBLEMS, Refused, problem_response
from api_shim.shim import Shim, opened

OPERATIONS: list[Operation] = [
    Operation(
        method="POST",
        path="/v1/executions",
        function=executions.submit,
        parameters=executions.SubmitParameters,
        body=ExecutionRequest,
        answers={202: executions.Accepted, 200: FinalResponse},
        headers={202: ("Location", "Preference-Applied"), 200: ("Location", "Preference-Applied")},
        refuses=(QueueFull, Conflict, CallbackUrlInvalid, CallbacksNotConfigured),
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
        parameters=Conditional,
        answers={200: ExecutionView, 304: None},
        headers={200: ("ETag",), 304: ("ETag",)},
    ),
    Operation(
        method="GET",
        path="/v1/executions/{execution_id}/events",
        function=event_stream.stream,
        parameters=event_stream.ResumeParameters,
        answers={200: "text/event-stream", 204: None},
        refuses=(TooManyStreams,),
    ),
    Operation(
        method="WEBSOCKET",
        path="/v1/executions/{execution_id}/ws",
        function=conversation.converse,
        parameters=conversation.ConverseParameters,
        answers={101: Frame},
        refuses=(Forbidden, TooManyStreams),
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
        refuses=(Forbidden, NotAwaitingApproval, AlreadyResolved),
    ),
    Operation(
        method="GET",
        path="/v1/callbacks",
        function=callbacks.list_callbacks,
        parameters=callbacks.CallbackListParameters,
        answers={200: CallbackList},
    ),
    Operation(
        method="GET",
        path="/v1/callbacks/{callback_id}",
        function=callbacks.show_callback,
        answers={200: CallbackView},
    ),
    Operation(
        method="POST",
        path="/v1/callbacks/{callback_id}/redeliver",
        function=callbacks.redeliver_callback,
        answers={202: CallbackView},
        refuses=(AlreadyDelivered,),
    ),
    Operation(
        method="POST",
        path="/v1/batches",
        function=batches.submit_batch,
        parameters=batches.BatchParameters,
        body=BatchRequest,
        reads=batch_body.MEDIA_TYPES,
        answers={202: batches.BatchAccepted},
        headers={202: ("Location",)},
        refuses=(TooManyBatches, Conflict, CallbackUrlInvalid, CallbacksNotConfigured),
    ),
    Operation(
        method="GET",
        path="/v1/batches",
        function=batches.list_batches,
        parameters=batches.BatchListParameters,
        answers={200: BatchList},
    ),
    Operation(
        method="GET",
        path="/v1/batches/{batch_id}",
        function=batches.show_batch,
        parameters=Conditional,
        answers={200: BatchView, 304: None},
        headers={200: ("ETag",), 304: ("ETag",)},
    ),
    Operation(
        method="GET",
        path="/v1/batches/{batch_id}/results",
        function=batches.download_results,
        parameters=batches.ResultsParameters,
        answers={200: batches.LINES},
        refuses=(TooManyStreams,),
    ),
    Operation(
        method="POST",
        path="/v1/batches/{batch_id}/cancel",
        function=batches.cancel_batch,
        answers={202: BatchView},
    ),
    Operation(
        method="POST",
        path="/v1/schedules",
        function=schedules.create_schedule,
        parameters=schedules.ScheduleParameters,
        body=ScheduleRequest,
        answers={201: ScheduleView},
        headers={201: ("Location",)},
        refuses=(TooManySchedules, Conflict, CallbackUrlInvalid, CallbacksNotConfigured),
    ),
    Operation(
        method="GET",
        path="/v1/schedules",
        function=schedules.list_schedules,
        parameters=schedules.ScheduleListParameters,
        answers={200: ScheduleList},
    ),
    Operation(
        method="GET",
        path="/v1/schedules/{schedule_id}",
        function=schedules.show_schedule,
        parameters=Conditional,
        answers={200: ScheduleView, 304: None},
        headers={200: ("ETag",), 304: ("ETag",)},
    ),
    Operation(
        method="DELETE",
        path="/v1/schedules/{schedule_id}",
        function=schedules.delete_schedule,
        answers={204: None},
    ),
    Operation(
        method="POST",
        path="/v1/schedules/{schedule_id}/pause",
        function=schedules.pause_schedule,
        answers={200: ScheduleView},
    ),
    Operation(
        method="POST",
        path="/v1/schedules/{schedule_id}/resume",
        function=schedules.resume_schedule,
        answers={200: ScheduleView},
    ),
    Operation(
        method="POST",
        path="/v1/chat/completions",
        function=chat_completions.complete_chat,
        parameters=chat_completions.ChatParameters,
        body=chat_wire.ChatRequest,
        answers={200: (chat_wire.ChatCompletion, event_stream.MEDIA_TYPE)},
        headers={200: ("Location",)},
        refuses=(QueueFull, Conflict, TooManyStreams, "answer_restarted", "restarting"),
        form=chat_wire.ERRORS,
    ),
    Operation(method="GET", path="/health/live", function=health.live, role=None, answers={200: health.Health}),
    Operation(
        method="GET",
        path="/health/ready",
        function=health.ready,
        role=None,
        answers={200: health.Health},
        refuses=(StorageUnavailable, StorageFull),
    ),
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
        for mended in (_is_no_socket_line, _in_a_line):
            logging.getLogger("uvicorn.error").addFilter(mended)
        async with opened(read, counters) as shim:
            yield {"shim": shim}

    app = Starlette(
        routes=[
            *routes(OPERATIONS),
            openapi.route(OPERATIONS),
            docs_page.route(),
        ],
        middleware=[Middleware(Observed, counters=counters), Middleware(Cors)],
        exception_handlers={AgentExecError: _told, Refused: _told, HTTPException: _told},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would name the host that the client claims
    return app


def _is_no_socket_line(record: logging.LogRecord) -> bool:
    """Tell uvicorn's lines on single sockets: paths with their query, and that a refused one was not accepted."""
    return '"WebSocket %s"' not in str(record.msg) and "without completing handshake" not in str(record.msg)


def _in_a_line(record: logging.LogRecord) -> bool:
    """Tell why the shim does not start without a stack, where the message says what to do."""
    error = str(record.msg).rstrip().rpartition("\n")[2]
    if error.startswith("agent_exec.errors."):
        record.msg = error.partition(": ")[2]
    return True


async def _told(request: Request, error: Exception) -> Response:
    return problem_response(error, getattr(request.state, "form", PROBLEMS))


app = create_app()
