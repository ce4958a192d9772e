"""JSON against a schema: structured answers, tool arguments, and schemas that would do harm (faults B16)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tasks.structured import MAX_FAULTS, Fits, Unfit, check_schema, faults, read_answer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_an_answer_is_parsed_where_structure_is_asked_for() -> None:
    assert read_answer("any text", None) == Fits(None)
    assert read_answer('{"city": "Lima"}', SCHEMA) == Fits({"city": "Lima"})


@pytest.mark.parametrize(
    "text",
    [
        "Lima",
        "",
        '{"city": 1}',
        '{"city": "Lima", "extra": 1}',
        "[]",
        "NaN",
        '{"city": "\\ud800"}',
        "[" * 100_000,
        "[" * 40 + "]" * 40,
    ],
)
def test_an_answer_of_another_form_does_not_fit_and_says_why(text: str) -> None:
    found = read_answer(text, SCHEMA)
    assert isinstance(found, Unfit)
    assert 1 <= len(found.faults) <= MAX_FAULTS
    assert all(len(fault) < 500 for fault in found.faults)


@pytest.mark.parametrize("schema", [{"type": "foo"}, {"$ref": "http://x/y"}, {"pattern": "("}, {"$ref": "#/nowhere"}])
def test_a_schema_that_cannot_be_used_is_refused_in_one_line(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        check_schema(schema)
    check_schema(SCHEMA)


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
    """S40."""
    began = time.perf_counter()
    faults("a" * 40 + "!", {"type": "string", "pattern": "^(a+)+$"})
    assert time.perf_counter() - began < 1
