"""An agent's configuration and its tenant, as Agent Management holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, create_model

from agent_exec.contract.model import (
    MAX_TEMPLATE_CHARS,
    MAX_TOOL_NAME_CHARS,
    MAX_TOOLS,
    AgentId,
    ContractModel,
    JsonObject,
    JsonSchema,
    ModelName,
    NoOtherKeys,
    Scalar,
    TenantId,
    ToolName,
)

Plan = Literal["free", "pro", "enterprise"]
AgentType = Literal["interactive", "workflow", "batch"]
#: `openai`, `groq`, or the name of a compatible endpoint in the settings.
ProviderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$", examples=["openai", "groq"])]
Variables = Annotated[
    dict[Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,63}$")], Scalar],
    NoOtherKeys(),
]


class PromptTemplate(ContractModel):
    """Text with `{{ names }}`, and the values for them. Rendered in a sandbox; values are never template source."""

    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)]
    variables: Variables = Field(default_factory=dict, max_length=100)


class ModelChoice(ContractModel):
    """A provider and one of its models."""

    provider: ProviderName
    model: ModelName


class Retrieval(ContractModel):
    """Whether, and how, documents are asked of the orchestrator before the first turn."""

    enabled: bool = False
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    filters: JsonObject = Field(default_factory=dict)


class Limits(ContractModel):
    """What one execution may use."""

    max_turns: Annotated[int, Field(ge=1, le=100)] = 10
    max_tool_calls: Annotated[int, Field(ge=0, le=1_000)] = 50
    max_total_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 200_000
    max_cost_usd: Annotated[float, Field(ge=0, le=10_000)] = 1.0
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = 900.0

    def least(self, other: Limits) -> Limits:
        """Return the tighter of both in each."""
        return Limits(**{name: min(value, getattr(other, name)) for name, value in dict(self).items()})


class ContextWindow(ContractModel):
    """What is done where a conversation does not fit the model. Never left out: the system prompt, the query, the last turn.

    `trim` leaves out the oldest of the history and of the tools' results, and says so in its place; `summarise` has the
    model sum up what is left out; `fail` sends everything, and the execution fails where the provider refuses it. Under any
    but `fail`, documents that do not fit are ranked against the query and the nearest kept.
    """

    policy: Literal["trim", "summarise", "fail"] = "trim"
    max_tokens: Annotated[
        int | None,
        Field(ge=256, le=10_000_000, description="prompt and answer together; null: the model's own, if it is known"),
    ] = None


class NamedToolChoice(ContractModel):
    """The one tool that the model has to call."""

    name: ToolName


class SubAgent(ContractModel):
    """Another agent of the tenant, offered to this one as a tool. What it answers is the tool's result."""

    agent_id: AgentId
    name: Annotated[ToolName | None, Field(description="the tool's; null: `ask_` and the agent's id")] = None
    description: Annotated[str, Field(max_length=4_096, description="for the model: what this agent is asked for")] = ""

    @property
    def tool_name(self) -> str:
        """What the model calls it."""
        return self.name or f"ask_{self.agent_id}"[:MAX_TOOL_NAME_CHARS]


class AgentConfig(ContractModel):
    """The whole configuration of an agent; snapshotted when an execution starts."""

    agent_id: AgentId
    version: Annotated[str, Field(max_length=100)] = "0"
    agent_type: AgentType = "interactive"
    provider: ProviderName
    model: ModelName
    fallbacks: Annotated[list[ModelChoice], Field(max_length=8)] = Field(default_factory=list)
    system_prompt: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] = ""
    variables: Variables = Field(default_factory=dict, max_length=100)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    response_format: JsonSchema | None = None
    tools: Annotated[list[ToolName], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    agents: Annotated[list[SubAgent], Field(max_length=MAX_TOOLS, description="other agents that it may ask")] = Field(
        default_factory=list
    )
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice = "auto"
    parallel_tool_calls: bool = True
    retrieval: Retrieval = Field(default_factory=Retrieval)
    context: ContextWindow = Field(default_factory=ContextWindow)
    limits: Limits = Field(default_factory=Limits)

    @property
    def choice(self) -> ModelChoice:
        """The first model of its chain."""
        return ModelChoice(provider=self.provider, model=self.model)

    @property
    def tool_names(self) -> list[str]:
        """What the model may call: tools of their sources, then other agents."""
        return [*self.tools, *(agent.tool_name for agent in self.agents)]

    def sub_agent(self, tool_name: str) -> SubAgent | None:
        """Return the agent that is asked by a call of this name; None where it is a tool like others."""
        return next((agent for agent in self.agents if agent.tool_name == tool_name), None)

    @property
    def prompt(self) -> PromptTemplate:
        """The system prompt with its variables."""
        return PromptTemplate(template=self.system_prompt, variables=self.variables)


if TYPE_CHECKING:  # what a checker needs to know of the model that is made below

    class AgentOverrides(ContractModel):
        """Any fields of an agent's configuration; those given win over what Agent Management holds."""

        agent_id: str | None = None
        limits: Limits | None = None

else:
    AgentOverrides = create_model(
        "AgentOverrides",
        __base__=ContractModel,
        __doc__="Any fields of an agent's configuration; those given win over what Agent Management holds.",
        **{name: (field.rebuild_annotation() | None, None) for name, field in AgentConfig.model_fields.items()},
    )


def must_be_of(agent_id: str, overrides: AgentOverrides) -> None:
    """Refuse a configuration that names another agent than the one that is to run.

    Raises:
        ValueError: it does.
    """
    if overrides.agent_id not in (None, agent_id):
        raise ValueError("agent_config.agent_id names another agent than agent_id")


class Budget(ContractModel):
    """What a tenant may spend."""

    usd_per_day: Annotated[float, Field(ge=0)] | None = None


class Tenant(ContractModel):
    """A tenant as Agent Management knows it."""

    tenant_id: TenantId
    plan: Plan = "free"
    weight: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    max_in_flight: Annotated[int, Field(ge=0, le=100_000)] = 0
    budget: Budget = Field(default_factory=Budget)
