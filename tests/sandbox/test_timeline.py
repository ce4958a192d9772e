"""Where the time of an execution went, from frames made by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agent_exec.contract.event import EventName, Frame
from sandbox.timeline import Span, Stage, stages

ID = "00000000-0000-4000-8000-000000000001"
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BEGAN_MS = BEGAN.timestamp() * 1000


def frames(*events: tuple[int, EventName, dict[str, Any]]) -> list[Frame]:
    return [
        Frame(
            event=event,
            task_id="t",
            tenant_id="acme",
            execution_id=ID,
            event_id=f"{ID}:{number}",
            sequence=number,
            timestamp=BEGAN + timedelta(milliseconds=at_ms),
            data=said,
        )
        for number, (at_ms, event, said) in enumerate(events, 1)
    ]


def thinking(turn: int) -> dict[str, Any]:
    return {"stage": "thinking", "step": f"completion.{turn}", "turn": turn, "detail": {}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"tool_call_id": name, "name": name, **more}


def token(text: str) -> dict[str, Any]:
    return {"token": text, "is_final": False}


TWO_TURNS = frames(
    (0, EventName.STARTED, {"agent_id": "desk", "status": "pending"}),
    (40, EventName.PROGRESS, {"stage": "processing", "step": "prompt", "turn": 0, "detail": {}}),
    (50, EventName.PROGRESS, thinking(1)),
    (450, EventName.TOOL_CALL_REQUESTED, tool("a", arguments={}, turn=1)),
    (450, EventName.TOOL_CALL_REQUESTED, tool("b", arguments={}, turn=1)),
    (480, EventName.TOOL_CALL_COMPLETED, tool("b", result=1, error=None, duration_s=0.010)),
    (500, EventName.TOOL_CALL_COMPLETED, tool("a", result=1, error=None, duration_s=0.025)),
    (520, EventName.PROGRESS, thinking(2)),
    (700, EventName.TOKEN, token("")),
    (720, EventName.TOKEN, token("It is")),
    (800, EventName.TOKEN, token(" 42.")),
    (1_000, EventName.COMPLETED, {}),
)


def at(from_ms: float, to_ms: float) -> Span:
    return Span(BEGAN_MS + from_ms, BEGAN_MS + to_ms)


def rounded(stage: Stage) -> tuple[str, int, int, int]:
    return stage.name, round(stage.span.from_ms - BEGAN_MS), round(stage.elsewhere_ms), round(stage.here_ms)


def test_stages_follow_one_another_and_add_up_to_the_whole() -> None:
    of = stages(TWO_TURNS, provider_calls=[at(60, 440), at(530, 980)])
    assert [rounded(stage) for stage in of] == [
        ("prompt", 0, 0, 40),
        ("completion 1", 40, 380, 30),
        ("tools", 450, 30, 20),
        ("completion 2", 500, 450, 50),
    ]
    assert round(sum(stage.span.ms for stage in of)) == 1_000
    assert [stage.first_token_ms for stage in of[:3]] == [None] * 3
    assert round(of[3].first_token_ms or 0) == 220


def test_without_a_providers_journal_the_step_itself_counts_as_the_providers() -> None:
    of = stages(TWO_TURNS, provider_calls=[])
    assert [rounded(stage) for stage in of if stage.name.startswith("completion")] == [
        ("completion 1", 40, 400, 10),
        ("completion 2", 500, 480, 20),
    ]


def test_tools_that_run_at_once_are_counted_once() -> None:
    stage = Stage("tools", at(0, 100), elsewhere=(at(10, 50), at(20, 30), at(40, 60)))
    assert (round(stage.elsewhere_ms), round(stage.here_ms)) == (50, 50)


def test_an_end_before_the_model_was_asked_is_a_stage_too() -> None:
    of = stages(frames((0, EventName.STARTED, {}), (70, EventName.FAILED, {})), provider_calls=[])
    assert [rounded(stage) for stage in of] == [("end", 0, 0, 70)]
