"""A tool: its definition, a call of it, and what came back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from agent_exec.contract.model import (
    AgentId,
    ContractModel,
    ExecutionId,
    Json,
    JsonObject,
    JsonSchema,
    OpaqueId,
    TenantId,
    ToolName,
    absent,
)

#: What a crash or a time-out may repeat: a `read` or an `idempotent` call yes, an `effect` no.
Effect = Literal["read", "idempotent", "effect"]

#: It has events and a response of its own.
ChildId = Annotated[
    ExecutionId | None,
    Field(description="of a call that asks another agent: that one's execution; else left out", exclude_if=absent),
]

#: What a tool may say of why it gave no result.
MAX_ERROR_CHARS = 4_000

_JSON: TypeAdapter[JsonValue] = TypeAdapter(Json)


def no_parameters() -> dict[str, JsonValue]:
    """Return the schema of a tool that takes nothing."""
    return {"type": "object", "properties": {}}


class ToolDefinition(ContractModel):
    """A tool as the Tool Registry lists it."""

    name: ToolName
    description: Annotated[str, Field(max_length=4_096)] = ""
    parameters: JsonSchema = Field(default_factory=no_parameters, description="JSON Schema 2020-12")
    effect: Effect = "effect"
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    requires_approval: bool = False


class ToolList(ContractModel):
    """The registry's answer for one agent."""

    tools: Annotated[list[ToolDefinition], Field(max_length=128)]


class ToolCall(ContractModel):
    """A call that the model asked for; `arguments` is the text it wrote, JSON or not."""

    id: OpaqueId
    name: Annotated[str, Field(max_length=256)]
    arguments: Annotated[str, Field(max_length=256_000)]

    def decoded_arguments(self) -> JsonValue:
        """Return the JSON that the model wrote; an empty object where it wrote nothing.

        Raises:
            ValueError: it is no JSON, or none that may cross our borders: too deep, a lone surrogate, not finite.
        """
        try:
            return _JSON.validate_json(self.arguments or "{}")
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from None


class ToolExecution(ContractModel):
    """The body of `POST /v1/tools/{name}/execute`."""

    tenant_id: TenantId
    agent_id: AgentId
    execution_id: ExecutionId
    tool_call_id: OpaqueId
    arguments: JsonObject


class ToolError(ContractModel):
    """Why a tool gave no result; the model reads it."""

    code: Annotated[str, Field(max_length=100)]
    message: Annotated[str, Field(max_length=MAX_ERROR_CHARS)]


class ToolResult(ContractModel):
    """The registry's answer to a call."""

    result: Json


class ToolFailure(ContractModel):
    """The registry's answer to a call that failed."""

    error: ToolError


class ToolCallRecord(ContractModel):
    """One finished call in the final response: `result` or `error`, never both."""

    id: OpaqueId
    name: Annotated[str, Field(max_length=256)]
    arguments: Json
    result: Json = None
    error: ToolError | None = None
    duration_s: Annotated[float, Field(ge=0)]
    child_execution_id: ChildId = None
