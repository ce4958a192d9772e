"""The wire of Chat Completions, by values alone: what a stream tells however its events are cut, and errors."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from agent_exec import errors
from agent_exec.contract.completion import Usage
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import FinalResponse, Output
from agent_exec.errors import ExecutionError, NeighbourError, OutputInvalid, ProviderError
from agent_exec.events import LoggedEvent
from api_shim.chat_wire import BAD_GATEWAY, GAP, STATUS_OF_FAILURE, UNSUPPORTED, ChatRequest, StreamedAnswer
from api_shim.problem import Refused

NOW = datetime(2026, 3, 2, tzinfo=UTC)
EXECUTION = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"


class Log:
    """The events of an execution, written one by one."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []

    def note(self, name: EventName, **said: Any) -> None:
        self.events.append(LoggedEvent(len(self.events) + 1, name, 1_000, json.dumps(said)))

    def turn(self, number: int, attempts: list[list[str]], **detail: Any) -> str:
        """Write a turn, begun anew until the last attempt; return what that one says."""
        step = f"completion.{number}"
        for attempt, tokens in enumerate(attempts, start=1):
            if attempt > 1:
                self.note(EventName.STEP_RESTARTED, step=step, attempt=attempt)
            self.note(EventName.PROGRESS, stage="thinking", step=step, turn=number, detail=detail)
            for token in tokens:
                self.note(EventName.TOKEN, token=token, is_final=False)
        return "".join(attempts[-1])

    def complete(self, text: str) -> None:
        response = FinalResponse(
            execution_id=EXECUTION,
            tenant_id="acme",
            agent_id="desk",
            status="completed",
            output=Output(text=text),
            usage=Usage(),
            created_at=NOW,
            finished_at=NOW,
        )
        self.note(EventName.COMPLETED, response=json.loads(response.model_dump_json()))


def told(answer: StreamedAnswer, pages: list[list[LoggedEvent]]) -> str:
    """Return the text that a client joins from its chunks, each of which OpenAI's own model takes."""
    sent = "".join(answer.tell(page) for page in pages)
    *chunks, done, rest = sent.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    read = [ChatCompletionChunk.model_validate_json(chunk.removeprefix("data: ")) for chunk in chunks]
    assert [chunk.choices[0].finish_reason for chunk in read] == [None] * (len(read) - 1) + ["stop"]
    assert [chunk.choices[0].delta.role for chunk in read] == ["assistant"] + [None] * (len(read) - 1)
    return "".join(chunk.choices[0].delta.content or "" for chunk in read)


def streamed(*, whole: bool = False) -> StreamedAnswer:
    return StreamedAnswer(EXECUTION, "desk", whole=whole, with_usage=False)


tokens = st.lists(st.sampled_from(["a", "b", "ab", "é", "\n"]), max_size=6)


@given(turns=st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=3), data=st.data())
def test_a_stream_tells_the_last_attempt_of_each_turn_or_says_that_it_cannot(
    turns: list[list[list[str]]], data: st.DataObject
) -> None:
    log = Log()
    texts = [log.turn(number, attempts) for number, attempts in enumerate(turns, start=1)]
    log.complete(texts[-1])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(log.events)))))
    pages = [log.events[start:end] for start, end in zip([0, *cuts], [*cuts, len(log.events)], strict=True)]
    try:
        text = told(streamed(), pages)
    except Refused:
        assert any(len(attempts) > 1 for attempts in turns)
    else:
        assert text == GAP.join(text for text in texts if text)
    assert told(streamed(whole=True), pages) == texts[-1]
    # Who comes back with their key reads all of it at once.
    assert told(streamed(), [log.events]) == GAP.join(text for text in texts if text)


def test_another_steps_restart_voids_nothing() -> None:
    log = Log()
    log.turn(1, [["Let me look."]])
    log.note(EventName.STEP_RESTARTED, step="tool_call.1.0", attempt=2)
    log.turn(2, [["42"]])
    log.complete("42")
    assert told(streamed(), [[event] for event in log.events]) == f"Let me look.{GAP}42"


def test_an_answer_that_had_to_be_mended_is_void_if_it_was_told() -> None:
    log = Log()
    log.turn(1, [["no JSON"]])
    log.turn(2, [["{}"]], repair=1)
    log.complete("{}")
    assert told(streamed(), [log.events]) == "{}"
    answer = streamed()
    with pytest.raises(Refused):
        told(answer, [[event] for event in log.events])


def test_every_code_of_a_failed_execution_has_its_status() -> None:
    """What is not in the table is the fault of somebody behind us: a provider, a neighbour, a model."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ExecutionError)]
    leaves = {kind.code: kind for kind in kinds if not kind.__subclasses__()}
    assert STATUS_OF_FAILURE.keys() <= leaves.keys()
    behind_us = (ProviderError, NeighbourError, OutputInvalid)
    assert all(issubclass(kind, behind_us) for code, kind in leaves.items() if code not in STATUS_OF_FAILURE)
    assert BAD_GATEWAY not in STATUS_OF_FAILURE.values()


def test_each_parameter_that_is_not_kept_has_its_reason() -> None:
    assert UNSUPPORTED.keys() < ChatRequest.model_fields.keys()
