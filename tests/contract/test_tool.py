"""What the model wrote as a call's arguments, read as JSON or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.contract.model import MAX_SCHEMA_BYTES
from agent_exec.contract.tool import ToolCall, ToolCallRecord, ToolDefinition, ToolExecution

ID = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"


def call(arguments: str) -> ToolCall:
    return ToolCall(id="1", name="clock", arguments=arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"), [("", {}), ("{}", {}), ('{"a": [1, null]}', {"a": [1, None]}), ("7", 7), ('"x"', "x")]
)
def test_arguments_are_json(arguments: str, expected: object) -> None:
    assert call(arguments).decoded_arguments() == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{", "EOF"),
        ("NaN", "not finite"),
        ("-1e999", "not finite"),
        ('"\\ud800"', "hex escape"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ("[" * 256_000, "recursion limit"),
    ],
)
def test_what_is_no_json_is_a_value_error_of_few_words(arguments: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as wrong:
        call(arguments).decoded_arguments()
    assert len(str(wrong.value)) < 200


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: json.dumps(raw.decode("latin-1"))))
def test_what_is_read_can_always_be_written(arguments: str) -> None:
    asked = call(arguments)
    try:
        decoded = asked.decoded_arguments()
    except ValueError:
        return
    ToolCallRecord(id="1", name="clock", arguments=decoded, duration_s=0).model_dump_json()
    if isinstance(decoded, dict):
        ToolExecution(
            tenant_id="a", agent_id="b", execution_id=ID, tool_call_id="1", arguments=decoded
        ).model_dump_json()


def test_a_schema_may_be_so_large_and_no_larger() -> None:
    def schema(size: int) -> dict[str, object]:
        return {"name": "t", "parameters": {"description": "x" * (size - len('{"description":""}'))}}

    ToolDefinition.model_validate(schema(MAX_SCHEMA_BYTES))
    with pytest.raises(ValueError, match=f"larger than {MAX_SCHEMA_BYTES} bytes"):
        ToolDefinition.model_validate(schema(MAX_SCHEMA_BYTES + 1))
