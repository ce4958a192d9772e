"""What a process remembers of the agents that it runs, and what it does not."""

from __future__ import annotations

import pytest

from agent_exec.contract.agent import AgentConfig, Tenant
from tasks.journal import SMALL_CHARS, Snapshot, read_snapshot


def stored(prompt: str) -> str:
    config = AgentConfig(agent_id="desk", provider="openai", model="sandbox-1")
    return Snapshot(config=config, tenant=Tenant(tenant_id="acme"), system_prompt=prompt).model_dump_json()


def test_steps_of_the_same_agent_hold_the_same_snapshot() -> None:
    assert read_snapshot(stored("You are a clerk.")) is read_snapshot(stored("You are a clerk."))
    assert read_snapshot(stored("You are a clerk.")) != read_snapshot(stored("You are a cook."))


@pytest.mark.parametrize("chars", [SMALL_CHARS, 10 * SMALL_CHARS])
def test_a_large_one_is_not_kept(chars: int) -> None:
    first, second = read_snapshot(stored("x" * chars)), read_snapshot(stored("x" * chars))
    assert first == second
    assert first is not second
