"""The prompt step: whose configuration counts, with which tools, fixed for the whole execution (fault F42)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_exec import keys
from agent_exec.contract.agent import AgentConfig, ContextWindow, Tenant
from tasks.journal import Journal, Snapshot
from tasks.neighbours.http import Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import Tools
from tasks.prompt import prepare
from tasks.shares import Shares
from tests.tasks.conftest import Bench, Played, saying

TENANT = {"tenant_id": "acme", "plan": "pro", "weight": 4.0, "max_in_flight": 7}
AGENT = {
    "agent_id": "desk",
    "provider": "openai",
    "model": "sandbox-1",
    "system_prompt": "You are {{ persona }}.",
    "variables": {"persona": "a clerk", "kept": None},
    "limits": {"max_turns": 3, "deadline_s": 60.0},
    "retrieval": {"enabled": True, "top_k": 9},
}
TOOLS = {"tools": [{"name": name} for name in ("weather", "clock", "abacus")]}


@pytest.fixture
async def desk(bench: Bench, neighbour: Neighbour) -> Bench:
    """The execution, whose neighbours are one played server."""
    bench.others |= {
        "management": AgentManagement(neighbour, ttl_s=0.0),
        "tools": Tools(ToolRegistry(neighbour, ttl_s=0.0), {}),
        "shares": Shares(bench.store, keep_s=60),
    }
    return bench


async def prepared(desk: Bench) -> Snapshot:
    await desk.run("prompt", prepare)
    return Journal(await desk.record()).fixed


async def failed(desk: Bench) -> tuple[str, str]:
    await desk.run("prompt", prepare)
    error = (await desk.response()).error
    assert error is not None
    return error.code, error.message


async def test_what_agent_management_holds_is_fixed(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying(AGENT)]
    fixed = await prepared(desk)
    assert fixed.config == AgentConfig.model_validate(AGENT)
    assert (fixed.tenant, fixed.system_prompt, fixed.tools) == (
        Tenant.model_validate(TENANT),
        "You are a clerk.",
        [],
    )
    assert [asked.path for asked in played.requests] == [
        "/base/v1/tenants/acme",
        "/base/v1/tenants/acme/agents/desk",
    ], "an agent without tools asks no registry"
    record = await desk.record()
    assert "operation.query" in record.steps
    assert await desk.store.redis.hget(keys.tenant("acme"), "plan") == b"pro", "the tenant's share is passed on"
    begun = (await desk.events())[-1]
    assert (begun.name, json.loads(begun.json)["stage"]) == ("agent_execution_progress", "processing")


async def test_the_agents_deadline_counts_from_acceptance(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying(AGENT)]
    await prepared(desk)
    record = await desk.record()
    assert record.deadline_ms == int(record.fields["created_ms"]) + 60_000


async def test_fields_of_the_message_win_and_the_rest_stays(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying(AGENT)]
    await desk.accept(
        agent_config={
            "model": "sandbox-2",
            "limits": {"max_turns": 9},
            "retrieval": {"enabled": False},
            "variables": {"persona": "{{ persona }} and __import__"},
            "temperature": None,
        },
        context={"variables": {}},
    )
    fixed = await prepared(desk)
    assert (fixed.config.model, fixed.config.provider, fixed.config.temperature) == ("sandbox-2", "openai", None)
    assert (fixed.config.limits.max_turns, fixed.config.limits.deadline_s) == (9, 60.0)
    assert (fixed.config.retrieval.enabled, fixed.config.retrieval.top_k) == (False, 9)
    assert fixed.config.variables == {"persona": "{{ persona }} and __import__"}, "variables are replaced whole"
    assert fixed.system_prompt == "You are {{ persona }} and __import__.", "a value is never template source"
    assert "completion.1" in (await desk.record()).steps


async def test_values_of_the_context_go_into_the_prompt(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying(AGENT)]
    await desk.accept(context={"variables": {"persona": "a sailor"}})
    assert (await prepared(desk)).system_prompt == "You are a sailor."


async def test_a_whole_configuration_in_the_message_fetches_nothing(desk: Bench, played: Played) -> None:
    await desk.accept(agent_config={**AGENT, "tools": [], "retrieval": None})
    fixed = await prepared(desk)
    assert fixed.config.limits.max_turns == 3
    assert fixed.tenant == Tenant(tenant_id="acme"), "the smallest plan"
    assert not played.requests


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"agent_id": "desk"}, "provider: Field required; model: Field required"),
        ({"agent_id": "desk", "provider": "openai"}, "model: Field required"),
    ],
)
async def test_a_configuration_that_is_not_whole_is_told_by_its_fields(
    desk: Bench, played: Played, given: dict[str, Any], words: str
) -> None:
    await desk.accept(agent_config=given)
    code, message = await failed(desk)
    assert code == "prompt_invalid"
    assert f"payload.agent_config does not fit this agent: {words}" in message
    assert not played.requests


async def test_tools_come_in_the_agents_order(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "tools": ["clock", "weather"]}), saying(TOOLS)]
    assert [tool.name for tool in (await prepared(desk)).tools] == ["clock", "weather"]
    assert played.requests[-1].path == "/base/v1/tenants/acme/agents/desk/tools"


async def test_a_tool_that_the_registry_does_not_offer_fails_the_execution(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "tools": ["clock", "teleport", "fly"]}), saying(TOOLS)]
    code, message = await failed(desk)
    assert code == "prompt_invalid"
    assert "does not offer teleport, fly to agent 'desk'" in message


@pytest.mark.parametrize("schema", [{"type": "string!"}, {"$ref": "http://127.0.0.1/schema"}, {"pattern": "("}])
async def test_a_response_format_that_cannot_be_used_fails_before_anything_is_paid(
    desk: Bench, played: Played, schema: dict[str, Any]
) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "response_format": schema})]
    code, message = await failed(desk)
    assert code == "prompt_invalid"
    assert "The agent's response_format is no JSON Schema that can be used: " in message


async def test_a_tool_choice_that_is_none_of_the_tools_fails_before_anything_is_paid(
    desk: Bench, played: Played
) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "tools": ["clock"], "tool_choice": {"name": "weather"}})]
    code, message = await failed(desk)
    assert (code, "names 'weather', which is none of its tools" in message) == ("prompt_invalid", True)


async def test_an_agent_that_may_call_no_tool_is_offered_none(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "tools": ["clock"], "tool_choice": "none"})]
    assert (await prepared(desk)).tools == []
    assert len(played.requests) == 2


async def test_a_part_of_the_context_policy_leaves_the_other(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "context": {"policy": "summarise", "max_tokens": 4_000}})]
    await desk.accept(agent_config={"context": {"max_tokens": 8_000}, "retrieval": {"enabled": False}})
    assert (await prepared(desk)).config.context == ContextWindow(policy="summarise", max_tokens=8_000)
    assert "operation.summary.1" in (await desk.record()).steps


async def test_a_template_that_does_not_render_fails_the_execution(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying({**AGENT, "system_prompt": "{{ nobody }}"})]
    assert (await failed(desk))[0] == "prompt_invalid"


async def test_a_change_after_the_prompt_step_changes_nothing(desk: Bench, played: Played) -> None:
    played.answers = [saying(TENANT), saying(AGENT), saying({**AGENT, "model": "other"})]
    before = await prepared(desk)
    await desk.run("prompt", prepare)
    assert Journal(await desk.record()).fixed == before
    assert len(played.requests) == 2
