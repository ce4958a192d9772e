"""Our events as AG-UI's: every kind, void text, and any place to resume from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.contract.completion import Usage
from agent_exec.contract.event import CompletedData, FailedData
from agent_exec.contract.execution import ErrorDetail, FinalResponse, Output
from agent_exec.contract.message import Message
from agent_exec.events import LoggedEvent
from api_shim.ag_ui import Place, Run, Told
from tests.api_shim.ag_ui_client import Conversation, judged

EXECUTION_ID = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
THINKING = {"stage": "thinking", "detail": {}}


def message(**metadata: str) -> Message:
    history = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "old", "name": "look", "arguments": "{}"}]},
        {"role": "tool", "content": "nothing", "tool_call_id": "old"},
        {"role": "assistant", "content": "Hello!"},
    ]
    return Message.model_validate_json(
        json.dumps(
            {
                "task_id": "t",
                "tenant_id": "acme",
                "agent_id": "desk",
                "execution_id": EXECUTION_ID,
                "created_at": NOW.isoformat(),
                "metadata": metadata,
                "payload": {"query": "What is 6 * 7?", "context": {"history": history}},
            }
        )
    )


class Log:
    """Events as they are stored, in the order in which a test has them happen."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []
        self.add("agent_execution_started", agent_id="desk", status="pending")
        self.add("agent_execution_progress", stage="processing", step="prompt", turn=0, detail={})

    def add(self, event: str, **said: Any) -> None:
        """Append one."""
        self.events.append(LoggedEvent(len(self.events) + 1, event, 1_000 + len(self.events), json.dumps(said)))

    def think(self, turn: int) -> None:
        """Begin a turn."""
        self.add("agent_execution_progress", step=f"completion.{turn}", turn=turn, **THINKING)

    def say(self, *tokens: str, is_final: bool = False) -> None:
        """Stream text."""
        for token in tokens:
            self.add("agent_response_token", token=token, is_final=False)
        if is_final:
            self.add("agent_response_token", token="", is_final=True)

    def restart(self, turn: int) -> None:
        """Begin another attempt of a turn that had streamed."""
        self.add("step_restarted", step=f"completion.{turn}", attempt=2)
        self.think(turn)

    def call(self, *ids: str) -> None:
        """Ask for tools."""
        for one in ids:
            self.add("tool_call_requested", tool_call_id=one, name="add", arguments={"of": [1, one]}, turn=1)

    def result(self, call_id: str, *, error: dict[str, str] | None = None) -> None:
        """End a tool's call."""
        result = None if error else [{"sum": 3}]
        self.add("tool_call_completed", tool_call_id=call_id, name="add", result=result, error=error, duration_s=0.1)

    def end(self, text: str = "", *, code: str | None = None) -> None:
        """End the execution."""
        response = FinalResponse(
            execution_id=EXECUTION_ID,
            tenant_id="acme",
            agent_id="desk",
            status="completed" if code is None else "failed",
            output=Output(text=text),
            usage=Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7),
            model="m",
            created_at=NOW,
            finished_at=NOW,
        )
        if code is None:
            self.add("agent_execution_completed", **CompletedData(response=response).model_dump(mode="json"))
        else:
            failed = FailedData(error=ErrorDetail(code=code, message="so it is"), response=response)
            self.add("agent_execution_failed", **failed.model_dump(mode="json"))

    def told(self) -> list[Told]:
        """Return all of theirs."""
        run = Run(message())
        return [one for event in self.events for one in run.tell(event)]

    def shown(self, *, is_over: bool = True) -> tuple[list[dict[str, Any]], Conversation]:
        """Return all of theirs, judged, and what a reader shows."""
        events = judged([one.json for one in self.told()], is_over=is_over)
        conversation = Conversation()
        for event in events:
            conversation.apply(event)
        return events, conversation


@pytest.fixture
def log() -> Log:
    return Log()


def test_an_answer(log: Log) -> None:
    log.think(1)
    log.say("4", "2", is_final=True)
    log.end("42")
    events, conversation = log.shown()
    assert [event["type"] for event in events] == [
        "RUN_STARTED",
        "STEP_STARTED",
        "STEP_FINISHED",
        "STEP_STARTED",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "STEP_FINISHED",
        "RUN_FINISHED",
    ]
    assert (conversation.texts, conversation.outcome) == (["42"], "success")
    assert events[-1]["result"]["output"]["text"] == "42"
    assert events[-1]["usage"] == [{"inputTokens": 3, "outputTokens": 4, "totalTokens": 7, "model": "m"}]
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)


def test_a_conversation_is_the_thread() -> None:
    log = Log()
    (started,) = Run(message(conversation_id="c")).tell(log.events[0])
    assert json.loads(started.json)["threadId"] == "c"
    (started,) = Run(message()).tell(log.events[0])
    assert json.loads(started.json)["threadId"] == EXECUTION_ID


def test_tools_belong_to_the_message_of_their_turn(log: Log) -> None:
    log.think(1)
    log.say("I add.")
    log.call("one", "two")
    log.result("two", error={"code": "tool_error", "message": "no"})
    log.result("one")
    log.think(2)
    log.say("3", is_final=True)
    log.end("3")
    _, conversation = log.shown()
    asked, failed, added, answer = conversation.messages
    assert [call["id"] for call in asked["toolCalls"]] == ["one", "two"]
    assert (asked["content"], json.loads(asked["toolCalls"][0]["arguments"])) == ("I add.", {"of": [1, "one"]})
    assert json.loads(failed["content"]) == {"error": {"code": "tool_error", "message": "no"}}
    assert json.loads(added["content"]) == [{"sum": 3}]
    assert answer["content"] == "3"


def test_tools_without_a_word_have_one_message_too(log: Log) -> None:
    log.think(1)
    log.call("one", "two")
    _, conversation = log.shown(is_over=False)
    assert [len(one["toolCalls"]) for one in conversation.messages] == [2]


def test_void_text_is_gone_and_nothing_else(log: Log) -> None:
    log.think(1)
    log.say("I add.")
    log.call("one")
    log.result("one")
    log.think(2)
    log.say("It is thr")
    log.restart(2)
    log.say("It is 3.", is_final=True)
    log.end("It is 3.")
    events, conversation = log.shown()
    assert conversation.texts[-2:] == ["I add.", "It is 3."]
    assert not any("thr" in text for text in conversation.texts)
    (snapshot,) = [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
    assert [one["role"] for one in snapshot["messages"]] == [
        *("user", "assistant", "tool", "assistant"),  # the history
        *("user", "assistant", "tool"),
    ]
    (restarted,) = [event for event in events if event.get("name") == "agent_execution.step_restarted"]
    started = [event["messageId"] for event in events if event["type"] == "TEXT_MESSAGE_START"]
    assert restarted["value"]["void_message_id"] == started[1]
    assert len(set(started)) == 3


def test_an_attempt_that_is_void_before_its_first_word(log: Log) -> None:
    log.think(1)
    log.say("")
    log.restart(1)
    log.say("42", is_final=True)
    log.end("42")
    events, conversation = log.shown()
    assert conversation.texts == ["42"]
    assert not [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]


def test_an_answer_that_does_not_fit_is_followed_by_another(log: Log) -> None:
    log.think(1)
    log.say("no JSON")
    log.think(2)
    log.say("{}", is_final=True)
    log.end("{}")
    assert log.shown()[1].texts == ["no JSON", "{}"]


@pytest.mark.parametrize(("code", "outcome"), [("limit_exceeded", "limit_exceeded"), ("cancelled", "cancelled")])
def test_an_end_in_the_middle_of_the_text(log: Log, code: str, outcome: str) -> None:
    log.think(1)
    log.say("Well, ")
    log.end("Well, ", code=code)
    events, conversation = log.shown()
    assert conversation.outcome == outcome
    assert events[-1]["type"] == ("RUN_FINISHED" if code == "cancelled" else "RUN_ERROR")


@pytest.mark.parametrize("name", ["tool_approval_requested", "invented_by_a_newer_release"])
def test_what_the_protocol_does_not_know(log: Log, name: str) -> None:
    log.add(name, tool_call_id="one")
    log.add("agent_execution_progress", stage="waiting", step="completion.1", turn=0, detail={"code": "c"})
    events, _ = log.shown(is_over=False)
    assert (events[-2]["name"], events[-2]["value"]) == (f"agent_execution.{name}", {"tool_call_id": "one"})
    assert events[-1]["name"] == "agent_execution.progress"


@pytest.mark.parametrize("text", ["0", "17", "17.2"])
def test_a_place_is_read_as_it_is_written(text: str) -> None:
    assert str(Place.parse(text)) == text


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Draw an execution: turns with text, attempts and calls, and an end."""
    log = Log()
    text = ""
    for turn in range(1, draw(st.integers(1, 3)) + 1):
        log.think(turn)
        for _ in range(draw(st.integers(0, 2))):
            log.say("void", *draw(st.lists(st.text(max_size=3), max_size=3)))
            log.restart(turn)
        tokens = draw(st.lists(st.text(max_size=3), max_size=3))
        text = "".join(tokens)
        log.say(*tokens)
        calls = [f"{turn}.{index}" for index in range(draw(st.integers(0, 2)))]
        log.call(*calls)
        for call_id in draw(st.permutations(calls)):
            log.result(call_id)
    if draw(st.booleans()):
        log.say("", is_final=True)
    log.end(text, code=draw(st.sampled_from([None, "cancelled", "timed_out"])))
    return log


@given(logs())
def test_any_execution_is_a_run_and_shows_its_text(log: Log) -> None:
    events, conversation = log.shown()
    assert "void" not in "".join(conversation.texts)
    assert events[0]["type"] == "RUN_STARTED"
    said = events[-1].get("result", {}).get("output", {}).get("text")
    if said:
        assert conversation.texts[-1] == said


@given(logs())
def test_places_grow_and_the_last_part_of_an_event_is_its_sequence(log: Log) -> None:
    """So who resumes behind any of them is told what is left, and nothing twice; and the end is the end of the log."""
    places = [one.place for one in log.told()]
    assert places == sorted(set(places))
    assert places[-1] == Place(len(log.events), 0)
    run = Run(message())
    for event in log.events:
        told = run.tell(event)
        assert [one.place.parts for one in told] == [*range(1, len(told)), *([0] if told else [])]
