"""The prompt step: fetch the agent's configuration and tools, render its prompt, and fix all of it for the execution.

Owns how the message's own configuration and Agent Management's add up. Does not know what follows.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from agent_exec import configuration
from agent_exec.configuration import Edition
from agent_exec.contract.agent import AgentConfig, NamedToolChoice, Tenant
from agent_exec.contract.event import EventName, ProgressData
from agent_exec.contract.message import Message
from agent_exec.contract.model import MAX_TOOLS
from agent_exec.contract.tool import ToolDefinition
from agent_exec.errors import PromptInvalid
from agent_exec.ledger.ledger import Event
from agent_exec.submission import complaints
from tasks.journal import PROMPT_STEP, Snapshot
from tasks.next_step import after_prompt
from tasks.step import Done, Step
from tasks.structured import check_schema
from tasks.sub_agent import definition
from tasks.template import render

#: What a message may give parts of.
PARTIAL = frozenset({"limits", "retrieval", "context"})


async def prepare(step: Step) -> Done:
    """Do the step."""
    message = step.claim.execution.message
    current = configuration.edition(message.tenant_id, message.agent_id)
    edition = await step.resources.store.insist(current)
    config, tenant = await _config(step, message, edition)
    snapshot = Snapshot(
        config=config,
        tenant=tenant,
        system_prompt=render(config.prompt, values=message.payload.context.variables),
        tools=await _tools(step, message, config, edition),
    )
    result = snapshot.model_dump_json()
    begun = ProgressData(stage="processing", step=step.ref.step)
    return Done(
        result=result,
        events=[Event(EventName.PROGRESS, begun.model_dump_json())],
        next=after_prompt(step.journal.and_then(PROMPT_STEP, result)),
        snapshot=snapshot,
    )


async def _config(step: Step, message: Message, edition: Edition) -> tuple[AgentConfig, Tenant]:
    """A configuration that names its agent is a whole one and stands for itself: nothing is fetched, so that the tenant
    counts as of the smallest plan. Anything less is laid over Agent Management's, but for the limits of a child: what its
    parent has left for it allows it no more than its own do.
    """
    overrides: dict[str, Any] = message.payload.agent_config.model_dump(exclude_unset=True, exclude_none=True)
    management = step.resources.management
    if "agent_id" in overrides:
        tenant, whole = Tenant(tenant_id=message.tenant_id), overrides
    else:
        tenant = await management.tenant(message.tenant_id, edition=edition)
        await step.resources.shares.note(tenant)
        stored = await management.agent(message.tenant_id, message.agent_id, edition=edition)
        whole = _laid_over(stored.model_dump(), overrides)
        granted = message.payload.agent_config.limits
        if step.claim.execution.parent is not None and granted is not None:
            whole["limits"] = stored.limits.least(granted).model_dump()
    try:
        config = AgentConfig.model_validate(whole)
    except ValidationError as error:
        raise PromptInvalid(f"payload.agent_config does not fit this agent: {complaints(error)}.") from None
    _check(config)
    return config, tenant


def _check(config: AgentConfig) -> None:
    """Refuse what no turn could keep, before one is paid for."""
    names = config.tool_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PromptInvalid(f"The agent has several tools by the name {', '.join(twice)}; give its agents other names.")
    if len(names) > MAX_TOOLS:
        raise PromptInvalid(f"The agent has {len(names)} tools and agents to ask; at most {MAX_TOOLS} may be.")
    if isinstance(config.tool_choice, NamedToolChoice) and config.tool_choice.name not in names:
        raise PromptInvalid(f"The agent's tool_choice names '{config.tool_choice.name}', which is none of its tools.")
    if config.response_format is not None:
        try:
            check_schema(config.response_format)
        except ValueError as error:
            raise PromptInvalid(f"The agent's response_format is no JSON Schema that can be used: {error}.") from None


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with the fields of `above`; of those in `PARTIAL` only the parts that are given."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict) and name in PARTIAL
        merged[name] = {**below[name], **value} if both else value
    return merged


async def _tools(step: Step, message: Message, config: AgentConfig, edition: Edition) -> list[ToolDefinition]:
    """The definitions of the agent's tools, in its order, and behind them of the agents that it may ask."""
    if config.tool_choice == "none":  # what is not offered cannot be called either
        return []
    agents = [definition(agent) for agent in config.agents]
    if not config.tools:
        return agents
    tools = step.resources.tools
    offered = await tools.offered(message.tenant_id, message.agent_id, config.tools, edition=edition)
    missing = [name for name in config.tools if name not in offered]
    if missing:
        raise PromptInvalid(
            f"The Tool Registry does not offer {', '.join(missing)} to agent '{message.agent_id}'; register the tool, or "
            "take it out of the agent's tools."
        )
    return [*(offered[name] for name in config.tools), *agents]
