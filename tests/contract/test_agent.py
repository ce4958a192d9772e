"""An agent's configuration: its defaults, its bounds, and overrides that are any part of it."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from pydantic import ValidationError

from agent_exec.contract.agent import AgentConfig, AgentOverrides, PromptTemplate, Tenant

LEAST = {"agent_id": "desk", "provider": "openai", "model": "m"}


def test_a_configuration_needs_an_agent_a_provider_and_a_model() -> None:
    config = AgentConfig.model_validate(LEAST)
    assert (config.limits.max_turns, config.limits.deadline_s, config.tool_choice) == (10, 900.0, "auto")
    for missing in LEAST:
        with pytest.raises(ValidationError, match=missing):
            AgentConfig.model_validate({name: value for name, value in LEAST.items() if name != missing})


def test_the_prompt_is_the_template_with_its_variables() -> None:
    config = AgentConfig.model_validate(LEAST | {"system_prompt": "Be {{ x }}.", "variables": {"x": "brief"}})
    assert config.prompt == PromptTemplate(template="Be {{ x }}.", variables={"x": "brief"})


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "OpenAI"},
        {"provider": "http://evil"},
        {"base_url": "http://evil"},
        {"api_key": "sk-1"},
        {"temperature": 2.1},
        {"temperature": "0.5"},
        {"max_output_tokens": 0},
        {"tools": ["a b"]},
        {"tools": ["t"] * 129},
        {"tool_choice": "clock"},
        {"tool_choice": {"name": "a/b"}},
        {"fallbacks": [{"provider": "groq"}]},
        {"limits": {"max_turns": 101}},
        {"limits": {"deadline_s": 0}},
        {"retrieval": {"top_k": 0}},
        {"variables": {"__class__.x": 1}},
        {"variables": {"x": {"nested": 1}}},
        {"response_format": {"x": "y" * 64_001}},
    ],
)
@pytest.mark.parametrize("model", [AgentConfig, AgentOverrides])
def test_bounds_hold_in_the_whole_and_in_overrides(model: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate({**(LEAST if model is AgentConfig else {}), **change})


def test_any_field_may_be_overridden_and_none_must() -> None:
    assert AgentOverrides.model_validate({}).model_dump(exclude_unset=True) == {}
    assert AgentOverrides.model_fields.keys() == AgentConfig.model_fields.keys()
    for name in AgentConfig.model_fields:
        assert AgentOverrides.model_validate({name: None}).model_dump(exclude_unset=True) == {name: None}
    whole = LEAST | {"temperature": 0.5, "limits": {"max_turns": 3}, "tool_choice": {"name": "clock"}}
    assert AgentOverrides.model_validate(whole).model_dump(exclude_unset=True) == whole


@pytest.mark.parametrize("change", [{"plan": "gold"}, {"weight": 0}, {"max_in_flight": -1}, {"budget": {"usd": 1}}])
def test_a_tenant_is_within_bounds(change: dict[str, Any]) -> None:
    assert Tenant(tenant_id="acme").plan == "free"
    with pytest.raises(ValidationError):
        Tenant.model_validate({"tenant_id": "acme", **change})


def test_the_overrides_document_themselves() -> None:
    assert "Any fields" in typing.cast(str, AgentOverrides.__doc__)
