"""Events, and the frame in which each one travels to the orchestrator and to live readers."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from agent_exec.contract.execution import ErrorDetail, FinalResponse, ParentId, Timestamp
from agent_exec.contract.model import ContractModel, ExecutionId, Json, JsonObject, OpaqueId, TenantId
from agent_exec.contract.tool import ChildId, ToolError


class EventName(StrEnum):
    """The five names that the user fixed, and four of ours."""

    STARTED = "agent_execution_started"
    PROGRESS = "agent_execution_progress"
    TOOL_CALL_REQUESTED = "tool_call_requested"
    TOOL_CALL_COMPLETED = "tool_call_completed"
    TOOL_APPROVAL_REQUESTED = "tool_approval_requested"
    TOKEN = "agent_response_token"  # noqa: S105 the name of an event
    STEP_RESTARTED = "step_restarted"
    COMPLETED = "agent_execution_completed"
    FAILED = "agent_execution_failed"


#: Nothing follows one of these.
TERMINAL_EVENTS = frozenset({EventName.COMPLETED, EventName.FAILED})


class Frame(ContractModel):
    """One event on the wire: the notifier's WebSocket, SSE, the shim's WebSocket."""

    event: EventName
    service: Literal["agent-execution"] = "agent-execution"
    task_id: OpaqueId
    global_task_id: OpaqueId | None = None
    tenant_id: TenantId
    execution_id: ExecutionId
    event_id: Annotated[str, Field(description="execution id, a colon, the sequence: the same at every delivery")]
    sequence: Annotated[int, Field(ge=1, description="gap-free from 1 within an execution")]
    timestamp: Timestamp
    data: JsonObject


class StartedData(ContractModel):
    """`agent_execution_started`: the execution is accepted and stored."""

    agent_id: str
    status: Literal["pending"] = "pending"
    parent_execution_id: ParentId = None


class ProgressData(ContractModel):
    """`agent_execution_progress`: a step begins or waits; `flagged`: the answer has images of the hosts in `image_hosts`."""

    stage: Literal["processing", "retrieving", "thinking", "waiting", "flagged"]
    step: str
    turn: int = 0
    detail: JsonObject = Field(default_factory=dict)


class ToolCallRequestedData(ContractModel):
    """`tool_call_requested`: the model asked for a tool."""

    tool_call_id: str
    name: str
    arguments: Json
    turn: int
    child_execution_id: ChildId = None


class ToolApprovalRequestedData(ContractModel):
    """`tool_approval_requested`: the call waits for a person's approval until `expires_at`, and holds nothing meanwhile."""

    tool_call_id: str
    name: str
    arguments: Json
    turn: int
    expires_at: Timestamp


class ToolCallCompletedData(ContractModel):
    """`tool_call_completed`: its result, or why there is none."""

    tool_call_id: str
    name: str
    result: Json = None
    error: ToolError | None = None
    duration_s: float
    child_execution_id: ChildId = None


class TokenData(ContractModel):
    """`agent_response_token`: text as it comes. `is_final` marks the last piece of the answer; it may be empty.

    `attempt` counts like that of `step_restarted`; it is left out of a first attempt's tokens.
    """

    token: str
    is_final: bool = False
    attempt: Annotated[int, Field(ge=1)] = 1


class StepRestartedData(ContractModel):
    """`step_restarted`: tokens of this step sent before are void; `attempt` streams anew."""

    step: str
    attempt: int


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _of_response(validated: dict[str, Any]) -> str:
    return text_sha256(validated["response"].output.text)


#: Of the last answer's tokens, joined: lets their reader see that it has all of them, and no void one.
TextSha256 = Annotated[
    str,
    Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of `response.output.text` as UTF-8, in hexadecimal"),
]


class CompletedData(ContractModel):
    """`agent_execution_completed`: the final response."""

    response: FinalResponse
    text_sha256: TextSha256 = Field(default_factory=_of_response)


class FailedData(ContractModel):
    """`agent_execution_failed`: why, and the final response with what was done."""

    error: ErrorDetail
    response: FinalResponse
    text_sha256: TextSha256 = Field(default_factory=_of_response)
