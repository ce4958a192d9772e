"""An execution as its caller asks for it, sees it, and gets its final response."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from agent_exec.contract.agent import AgentOverrides, must_be_of
from agent_exec.contract.completion import FinishReason, Usage
from agent_exec.contract.message import CallbackUrl, Context, Metadata, RunAt, Status, no_context
from agent_exec.contract.model import (
    MAX_QUERY_CHARS,
    AgentId,
    ContractModel,
    ExecutionId,
    Json,
    JsonObject,
    Priority,
    TenantId,
    absent,
)
from agent_exec.contract.tool import ToolCallRecord

Timestamp = Annotated[AwareDatetime, Field(strict=False)]
ParentId = Annotated[
    ExecutionId | None,
    Field(description="the execution whose agent asked for this one; left out where none did", exclude_if=absent),
]


class ExecutionRequest(ContractModel):
    """The body of `POST /v1/executions`. The tenant comes from the credential."""

    agent_id: AgentId
    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
    agent_config: AgentOverrides = Field(default_factory=AgentOverrides)
    context: Context = Field(default_factory=no_context)
    metadata: Metadata = Field(default_factory=Metadata)
    priority: Priority = 5
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    callback_url: CallbackUrl | None = None
    run_at: RunAt | None = None

    @model_validator(mode="after")
    def _configures_the_agent_that_runs(self) -> Self:
        must_be_of(self.agent_id, self.agent_config)
        return self


class ErrorDetail(ContractModel):
    """Why an execution failed. Codes are stable (docs/contract.md)."""

    code: str
    message: str
    retryable: bool = False
    detail: JsonObject = Field(default_factory=dict)


class Output(ContractModel):
    """The answer: its text and, where the agent asks for structure, the parsed value."""

    text: str = ""
    structured: Json = None


class FinalResponse(ContractModel):
    """What an execution came to. On failure the partial text and the usage are kept."""

    execution_id: ExecutionId
    tenant_id: TenantId
    agent_id: AgentId
    status: Literal["completed", "failed"]
    output: Output
    error: ErrorDetail | None = None
    usage: Usage
    tool_calls: list[ToolCallRecord] = Field(default_factory=list)
    turns: Annotated[int, Field(ge=0)] = 0
    finish_reason: Annotated[
        FinishReason | None, Field(description="why the last turn ended; `length`: its text is cut off")
    ] = None
    parent_execution_id: ParentId = None
    provider: str | None = None
    model: str | None = None
    created_at: Timestamp
    started_at: Timestamp | None = None
    finished_at: Timestamp
    metadata: Metadata = Field(default_factory=Metadata)


class ExecutionView(ContractModel):
    """The state of an execution, and its final response once there is one."""

    execution_id: ExecutionId
    tenant_id: TenantId
    agent_id: AgentId
    status: Status
    priority: Priority
    created_at: Timestamp
    runs_at: Annotated[
        Timestamp | None, Field(description="when it is to begin, or was, where that was not at once")
    ] = None
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    cancel_requested: bool = False
    parent_execution_id: ParentId = None
    awaiting_approval: Annotated[
        list[str], Field(description="the tool calls, by their ids, that wait for a person's approval")
    ] = Field(default_factory=list)
    awaiting_executions: Annotated[
        list[ExecutionId], Field(description="the executions of other agents whose answers it waits for")
    ] = Field(default_factory=list)
    last_sequence: int = 0
    response: FinalResponse | None = None
