"""The prompt step: fetch the agent's configuration and tools, render its prompt, and fix all of it for the execution.

Owns how the message's own configuration and Agent Management's add up. Does not know what follows.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.event import EventName, ProgressData
from agent_exec.contract.message import Message
from agent_exec.contract.tool import ToolDefinition
from agent_exec.errors import PromptInvalid
from agent_exec.ledger.ledger import Event
from agent_exec.submission import complaints
from tasks.journal import Snapshot
from tasks.next_step import after_prompt
from tasks.step import Done, Step
from tasks.template import render


async def prepare(step: Step) -> Done:
    """Do the step."""
    message = step.claim.execution.message
    config, tenant = await _config(step, message)
    snapshot = Snapshot(
        config=config,
        tenant=tenant,
        system_prompt=render(config.prompt, values=message.payload.context.variables),
        tools=await _tools(step, message, config),
    )
    begun = ProgressData(stage="processing", step=step.ref.step)
    return Done(
        result=snapshot.model_dump_json(),
        events=[Event(EventName.PROGRESS, begun.model_dump_json())],
        next=after_prompt(snapshot),
        snapshot=snapshot,
    )


async def _config(step: Step, message: Message) -> tuple[AgentConfig, Tenant]:
    """A configuration that names its agent is a whole one and stands for itself: nothing is fetched, so that the tenant
    counts as of the smallest plan. Anything less is laid over Agent Management's.
    """
    overrides: dict[str, Any] = message.payload.agent_config.model_dump(exclude_unset=True, exclude_none=True)
    management = step.resources.management
    if "agent_id" in overrides:
        tenant, whole = Tenant(tenant_id=message.tenant_id), overrides
    else:
        tenant = await management.tenant(message.tenant_id)
        await step.resources.shares.note(tenant)
        stored = await management.agent(message.tenant_id, message.agent_id)
        whole = _laid_over(stored.model_dump(), overrides)
    try:
        return AgentConfig.model_validate(whole), tenant
    except ValidationError as error:
        raise PromptInvalid(f"payload.agent_config does not fit this agent: {complaints(error)}.") from None


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with the fields of `above`; of `limits` and `retrieval` only the parts that are given."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict) and name in ("limits", "retrieval")
        merged[name] = {**below[name], **value} if both else value
    return merged


async def _tools(step: Step, message: Message, config: AgentConfig) -> list[ToolDefinition]:
    """The definitions of the agent's tools, in its order."""
    if not config.tools:
        return []
    offered = {tool.name: tool for tool in await step.resources.registry.tools(message.tenant_id, message.agent_id)}
    missing = [name for name in config.tools if name not in offered]
    if missing:
        raise PromptInvalid(
            f"The Tool Registry does not offer {', '.join(missing)} to agent '{message.agent_id}'; register the tool, or "
            "take it out of the agent's tools."
        )
    return [offered[name] for name in config.tools]
