"""Queues, task names and the table of priorities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec import routing


@pytest.mark.parametrize(
    ("step", "kind", "queue"),
    [
        ("prompt", "prompt", "agent_execution:acme"),
        ("operation.query", "operation", "agent_execution:acme"),
        ("completion.3", "completion", "agent_execution:acme"),
        ("tool_call.3.1", "tool_call", "agent_tools:acme:desk"),
    ],
)
def test_a_step_has_its_task_and_its_queue(step: str, kind: str, queue: str) -> None:
    assert routing.task_name(step) == f"agent_exec.{kind}"
    assert routing.queue("acme", "desk", step) == queue


@pytest.mark.parametrize(
    ("wish", "plan", "agent_type", "started", "expected"),
    [
        (9, "free", "workflow", False, 5),
        (9, "enterprise", "workflow", False, 9),
        (5, "pro", "interactive", False, 6),
        (5, "pro", "interactive", True, 7),
        (1, "pro", "batch", False, 0),
        (9, "enterprise", "interactive", True, 9),
    ],
)
def test_the_effective_priority(wish: int, plan: str, agent_type: str, started: bool, expected: int) -> None:
    assert routing.priority(wish, plan=plan, agent_type=agent_type, started=started) == expected  # type: ignore[arg-type]


@given(
    st.integers(0, 9),
    st.sampled_from(["free", "pro", "enterprise"]),
    st.sampled_from(["interactive", "workflow", "batch"]),
)
def test_what_has_begun_never_yields_to_its_own_kind(wish: int, plan: str, agent_type: str) -> None:
    fresh = routing.priority(wish, plan=plan, agent_type=agent_type, started=False)  # type: ignore[arg-type]
    begun = routing.priority(wish, plan=plan, agent_type=agent_type, started=True)  # type: ignore[arg-type]
    assert 0 <= fresh <= begun <= 9
