"""A model that calls tools wrongly (fault F39): it may mend that, and not for ever."""

from __future__ import annotations

import pytest

from agent_exec.contract.tool import ToolDefinition, ToolError
from agent_exec.errors import LimitExceeded
from tasks.journal import Journal, completion_step, tool_call_step
from tasks.next_step import CallTools, Fail
from tests.tasks.test_agent_loop import after_completion, answer, journal, record, snapshot

WRONG = ToolError(code="invalid_arguments", message="no")
UNKNOWN = ToolError(code="unknown_tool", message="no")
AWAY = ToolError(code="tool_unavailable", message="away")
#: Every call of these tests has the arguments {"a": 1}.
COUNT = ToolDefinition(name="count", parameters={"type": "object", "required": ["a"]})
WEIGH = ToolDefinition(name="weigh", parameters={"type": "object", "required": ["b"]})


def after(*turns: list[ToolError | None]) -> Journal:
    """Return the journal of these turns, each with the faults of its calls."""
    results = {"prompt": snapshot(tools=["count", "weigh"]).model_copy(update={"tools": [COUNT, WEIGH]})}
    for turn, faults in enumerate(turns, start=1):
        results[completion_step(turn)] = answer("", *["count"] * len(faults))  # type: ignore[assignment]
        for index, fault in enumerate(faults):
            results[tool_call_step(turn, index)] = record("count", None if fault else 1, fault)  # type: ignore[assignment]
    return journal(results)


@pytest.mark.parametrize("calls", [["weigh"], ["nothing"], ["weigh", "nothing"]])
def test_a_model_that_never_calls_a_tool_rightly_is_stopped(calls: list[str]) -> None:
    before = after([WRONG], [UNKNOWN, WRONG])
    follows = after_completion(answer("", *calls), turn=3, journal=before)
    assert isinstance(follows, Fail)
    assert isinstance(follows.error, LimitExceeded)
    assert "for 3 turns" in str(follows.error)
    assert follows.answer is not None, "it was paid for"


@pytest.mark.parametrize(
    ("turns", "calls"),
    [
        ([[WRONG], [WRONG]], ["count"]),
        ([[WRONG], [WRONG]], ["weigh", "count"]),
        ([[WRONG]], ["weigh"]),
        ([[WRONG], [None]], ["weigh"]),
        ([[None, WRONG], [WRONG]], ["weigh"]),
        ([[WRONG], [AWAY]], ["weigh"]),
        ([[None], [WRONG]], ["weigh"]),
    ],
)
def test_a_model_that_has_called_one_rightly_may_go_on(turns: list[list[ToolError | None]], calls: list[str]) -> None:
    follows = after_completion(answer("", *calls), turn=len(turns) + 1, journal=after(*turns))
    assert follows == CallTools(turn=len(turns) + 1, count=len(calls))
