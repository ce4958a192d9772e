"""JSON against a schema: structured answers, tool arguments, and schemas that would do harm (faults B16)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agent_exec.errors import OutputInvalid
from tasks.structured import MAX_FAULTS, faults, parse_structured

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_an_answer_is_parsed_where_structure_is_asked_for() -> None:
    assert parse_structured("any text", None) is None
    assert parse_structured('{"city": "Lima"}', SCHEMA) == {"city": "Lima"}


@pytest.mark.parametrize("text", ["Lima", "", '{"city": 1}', '{"city": "Lima", "extra": 1}', "[]"])
def test_an_answer_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(OutputInvalid, match="response_format"):
        parse_structured(text, SCHEMA)


def test_faults_say_where_and_are_few() -> None:
    assert faults({"city": "Lima"}, SCHEMA) == []
    assert "days" in faults({"city": "Lima", "days": 0}, SCHEMA)[0]
    many = {"type": "object", "properties": {str(n): {"type": "string"} for n in range(50)}}
    assert len(faults({str(n): n for n in range(50)}, many)) == MAX_FAULTS


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "https://example.com/s"])
def test_a_schema_that_refers_elsewhere_is_refused_and_nothing_is_fetched(reference: str) -> None:
    with pytest.raises(ValueError, match="nothing is fetched"):
        faults({}, {"$ref": reference})


def test_a_schema_may_refer_to_itself() -> None:
    tree: dict[str, Any] = {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False}
    assert faults({"child": {"child": {}}}, tree) == []
    assert faults({"child": {"other": 1}}, tree) != []


def test_a_catastrophic_pattern_costs_nothing() -> None:
    began = time.perf_counter()
    faults("a" * 40 + "!", {"type": "string", "pattern": "^(a+)+$"})
    assert time.perf_counter() - began < 1
