"""Whatever is sent to be decoded: what it means, or one of the stated errors; never anything else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_exec.contract.execution import ExecutionRequest
from agent_exec.errors import InvalidMessage
from api_shim.ag_ui import Place as EventPlace
from api_shim.body import check_json
from api_shim.chat_wire import ERRORS, ChatRequest, work_of
from api_shim.conversation import CancelExecution, ResolveApproval, _command
from api_shim.event_stream import ResumeParameters
from api_shim.executions import SubmitParameters
from api_shim.place import Place
from api_shim.problem import Refused, breach, problem_of

ANY_TEXT = st.text(st.characters(), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
SHARDS = st.sampled_from([b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\u", b"d800", b"1e999", b"NaN", b"-", b"\xff"])


@given(st.binary(max_size=60) | st.lists(SHARDS, max_size=30).map(b"".join))
@example(b"[" * 1_000_000)
@example(b'{"a":' * 100_000)
def test_any_body(body: bytes) -> None:
    with suppress(Refused, InvalidMessage):
        check_json(body)
        json.loads(body)


@given(JSON)
def test_a_body_that_is_json_is_never_said_to_be_none(value: Any) -> None:
    with suppress(InvalidMessage):
        check_json(json.dumps(value).encode())


@given(
    ANY_TEXT
    | st.fixed_dictionaries(
        {"command": st.sampled_from(["cancel_execution", "resolve_approval"])},
        optional=dict.fromkeys(("execution_id", "tool_call_id", "approved", "reason", "more"), JSON),
    ).map(json.dumps)
)
def test_any_command_on_a_socket(text: str) -> None:
    with suppress(Refused, InvalidMessage):
        assert isinstance(_command(text), CancelExecution | ResolveApproval)


@given(ANY_TEXT | st.text("0123456789.", max_size=20))
def test_any_last_event_id(text: str) -> None:
    with suppress(ValidationError):
        place = ResumeParameters.model_validate({"Last-Event-ID": text}).place
        assert isinstance(place, EventPlace)
        assert 0 <= place.sequence < 2**53


@given(ANY_TEXT | st.text("ABCDEFabcdef0123456789-_", max_size=60))
def test_any_cursor(text: str) -> None:
    with suppress(InvalidMessage):
        assert isinstance(Place.parse(text, of="acme"), Place)


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**9 - 1))
def test_a_cursor_is_read_as_it_was_written(before_ms: int, skip: int) -> None:
    place = Place(before_ms, skip)
    assert Place.parse(place.text(of="acme"), of="acme") == place


@given(ANY_TEXT)
@example("wait=99999999999")
@example('wait="5"')
def test_any_preference(text: str) -> None:
    assert 0 <= SubmitParameters.model_validate({"Prefer": text}).wait_s(longest_s=60) <= 60


_CONTENT = (
    ANY_TEXT | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": ANY_TEXT}), max_size=2)
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "wizard"]), "content": _CONTENT},
        optional={"tool_call_id": ANY_TEXT, "tool_calls": JSON, "name": ANY_TEXT},
    ),
    max_size=5,
)


@given(st.dictionaries(st.sampled_from([*ChatRequest.model_fields, "odd"]), JSON, max_size=4), _MESSAGES)
def test_any_chat(parameters: dict[str, Any], messages: list[Any]) -> None:
    asked = {"model": "desk", "messages": messages, **parameters}
    try:
        try:
            request = ChatRequest.model_validate_json(json.dumps(asked))
        except ValidationError as error:
            raise breach(error, where="body") from None
        assert isinstance(work_of(request), ExecutionRequest)
    except InvalidMessage as error:
        status, body, _ = ERRORS.of(problem_of(error))
        assert status == 400
        assert body.model_dump_json()
