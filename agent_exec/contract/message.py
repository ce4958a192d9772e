"""The standard message: how work reaches us, over Celery as it stands, over HTTP and the client made into it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, model_validator

from agent_exec.contract.agent import AgentOverrides, Variables, must_be_of
from agent_exec.contract.model import (
    MAX_HISTORY_MESSAGES,
    MAX_QUERY_CHARS,
    AgentId,
    ContractModel,
    ExecutionId,
    Json,
    OpaqueId,
    Priority,
    TenantId,
)
from agent_exec.contract.operation import Document
from agent_exec.contract.tool import ToolCall

Status = Literal["pending", "processing", "completed", "failed"]
MessageType = Literal["agent_execution", "tool_call", "streaming_response"]
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")
Source = Literal["api", "orchestrator", "workflow"]
CallbackUrl = Annotated[
    str, Field(max_length=2_048, description="gets the final response by a signed POST when the execution has ended")
]


def _written_out(value: Any) -> Any:
    """Refuse what pydantic takes for a moment beside one that is written out: seconds since 1970."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and _DATE.match(value)):
        raise ValueError("a moment is written YYYY-MM-DDThh:mm:ss and a zone, as ISO 8601 has it")
    return value


RunAt = Annotated[
    AwareDatetime,
    BeforeValidator(_written_out),
    Field(strict=False, description="when to begin; in the past, or without one, at once"),
]


class Metadata(ContractModel):
    """Ids of the caller's world; they come back on the response and, the global task id, on every frame."""

    conversation_id: OpaqueId | None = None
    session_id: OpaqueId | None = None
    workflow_id: OpaqueId | None = None
    source: Source = "api"
    global_task_id: OpaqueId | None = None


class MessageMetadata(Metadata):
    """The same, and where the end is told (the callback's URL comes back nowhere), and when to begin."""

    callback_url: CallbackUrl | None = None
    run_at: RunAt | None = None


class HistoryMessage(ContractModel):
    """An earlier message of the conversation. Callers write no system messages: those are the agent's."""

    role: Literal["user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=MAX_QUERY_CHARS)] = ""
    tool_calls: Annotated[list[ToolCall], Field(max_length=64)] = Field(default_factory=list)
    tool_call_id: OpaqueId | None = None


class Context(ContractModel):
    """What the caller knows: history, variables for the prompt, documents; any other key goes to the model as it is."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Json]

    history: Annotated[list[HistoryMessage], Field(max_length=MAX_HISTORY_MESSAGES)] = Field(default_factory=list)
    variables: Variables = Field(default_factory=dict, max_length=100)
    documents: Annotated[list[Document], Field(max_length=100)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _tool_results_follow_their_calls(self) -> Self:
        asked: set[str] = set()
        for message in self.history:
            if message.tool_calls and message.role != "assistant":
                raise ValueError("only an assistant message of the history may hold tool_calls")
            asked.update(call.id for call in message.tool_calls)
            if message.role == "tool" and message.tool_call_id not in asked:
                raise ValueError("a tool message of the history answers no tool call before it")
        return self


def no_context() -> Context:
    """Return a context that says nothing."""
    return Context.model_validate({})


class Payload(ContractModel):
    """The work itself."""

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
    agent_config: AgentOverrides = Field(default_factory=AgentOverrides)
    context: Context = Field(default_factory=no_context)
    tool_calls: Annotated[list[ToolCall], Field(max_length=0)] = Field(default_factory=list)


class Message(ContractModel):
    """The standard message (design.md); its field names are fixed."""

    task_id: OpaqueId
    tenant_id: TenantId
    agent_id: AgentId
    execution_id: ExecutionId
    created_at: Annotated[AwareDatetime, Field(strict=False)]
    status: Status = "pending"
    type: MessageType = "agent_execution"
    priority: Priority = 5
    metadata: MessageMetadata = Field(default_factory=MessageMetadata)
    payload: Payload

    @model_validator(mode="after")
    def _configures_the_agent_that_runs(self) -> Self:
        must_be_of(self.agent_id, self.payload.agent_config)
        return self
