"""What a provider is asked, and what it answers, in the words of the OpenAI wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agent_exec.contract.agent import NamedToolChoice, ProviderName
from agent_exec.contract.model import MAX_TOOLS, ContractModel, JsonSchema, ModelName, OpaqueId
from agent_exec.contract.tool import ToolCall, ToolDefinition

#: Why the model stopped. `stop` with tool calls is `tool_calls`, whatever the server said.
FinishReason = Literal["stop", "tool_calls", "length", "content_filter"]


class ChatMessage(ContractModel):
    """One message of a conversation. `tool` answers the call `tool_call_id`; only `assistant` holds `tool_calls`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: OpaqueId | None = None


class Usage(ContractModel):
    """Tokens and money. `cost_usd` is null where the model's price is unknown, never 0 for that reason."""

    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    completion_tokens: Annotated[int, Field(ge=0)] = 0
    total_tokens: Annotated[int, Field(ge=0)] = 0
    cost_usd: Annotated[float, Field(ge=0)] | None = 0.0

    @property
    def known(self) -> Usage:
        """The same, with a cost that is unknown counted as none: what is known of it."""
        return self if self.cost_usd is not None else self.model_copy(update={"cost_usd": 0.0})

    def plus(self, other: Usage) -> Usage:
        """Return the sum; a null cost makes the sum's cost null."""
        cost = None if self.cost_usd is None or other.cost_usd is None else self.cost_usd + other.cost_usd
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cost_usd=cost,
        )


class CompletionRequest(ContractModel):
    """One turn asked of a model."""

    provider: ProviderName
    model: ModelName
    messages: list[ChatMessage]
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice = "auto"
    parallel_tool_calls: bool = True
    temperature: float | None = None
    max_output_tokens: int = 1024
    response_format: JsonSchema | None = None


class CompletionResponse(ContractModel):
    """One turn answered; what the ledger journals for a completion step."""

    provider: ProviderName
    model: ModelName
    text: str = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    finish_reason: FinishReason
    usage: Usage
    #: Some number in `usage` is ours: the provider gave none, or one that cannot be.
    usage_estimated: bool = False
    #: What earlier attempts at this turn had used, as far as it is known.
    wasted: Usage = Usage()
