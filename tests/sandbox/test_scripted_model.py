"""What the scripted model understands and says, without a socket."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from sandbox.chat_request import BadRequest, OfferedFunction, read_request
from sandbox.form import fill
from sandbox.intents import wanted_calls
from sandbox.scripted_model import Answer, next_turn, pieces
from sandbox.toolbox import toolbox

OFFERED = [OfferedFunction(name) for name in toolbox()]


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("What is 17 * 23?", [("calculator", {"expression": "17 * 23"})]),
        ("What is (12 + 3) * 4 - 1,200 / 3?", [("calculator", {"expression": "(12 + 3) * 4 - 1200 / 3"})]),
        ("12 times 7 plus 3", [("calculator", {"expression": "12 * 7 + 3"})]),
        (
            "6 × 7 and 15% of 80",
            [("calculator", {"expression": "6 * 7"}), ("calculator", {"expression": "15 / 100 * 80"})],
        ),
        ("(It is 3 * (4 + 1))", [("calculator", {"expression": "3 * (4 + 1)"})]),
        ("The square root of 16?", [("calculator", {"expression": "sqrt(16)"})]),
        ("Call 555-1234 on 2026-11-23.", []),
        ("20 km in miles", [("convert_units", {"value": 20.0, "from_unit": "km", "to_unit": "miles"})]),
        (
            "Convert 72 degrees Fahrenheit to Celsius",
            [("convert_units", {"value": 72.0, "from_unit": "Fahrenheit", "to_unit": "Celsius"})],
        ),
        ("How many feet are in 3 m?", [("convert_units", {"value": 3.0, "from_unit": "m", "to_unit": "feet"})]),
        ("It is 5 minutes to Oslo.", []),
        ("What time is it in Tokyo and New York?", [("clock", {"city": "Tokyo"}), ("clock", {"city": "New York"})]),
        ("time in oslo", [("clock", {"city": "Oslo"})]),
        ("What time is it?", [("clock", {"city": "UTC"})]),
        ("There is plenty of time in general.", []),
        (
            "What is 3*120 and what does the handbook say about parental leave?",
            [("calculator", {"expression": "3*120"}), ("search_documents", {"query": "parental leave"})],
        ),
        (
            "Send a note to ada@example.com saying lunch is at 12.",
            [("send_note", {"recipient": "ada@example.com", "text": "lunch is at 12"})],
        ),
        ("Publish a note to all: 2 + 2 is 4", [("publish_note", {"recipient": "all", "text": "2 + 2 is 4"})]),
        ("Wait 2.5 seconds", [("slow", {"seconds": 2.5})]),
        ("Tell me a joke.", []),
    ],
)
def test_hears_which_tools_a_question_asks_for(question: str, wanted: list[tuple[str, Any]]) -> None:
    calls = wanted_calls(question, offered=OFFERED)

    assert [(call.name, json.loads(call.arguments)) for call in calls] == wanted


def test_calls_only_what_is_offered() -> None:
    assert wanted_calls("What is 17 * 23?", offered=[OfferedFunction("clock")]) == []


def after_tool(name: str, content: Any, *, question: str = "Well?") -> str:
    call = {"id": "c1", "function": {"name": name, "arguments": "{}"}}
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": content if isinstance(content, str) else json.dumps(content)},
    ]
    return said(messages)


def said(messages: list[dict[str, Any]]) -> str:
    turn = next_turn(read_request(json.dumps({"model": "sandbox-1", "messages": messages}).encode()))
    assert isinstance(turn, Answer)
    return turn.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("calculator", {"expression": "6 * 7", "value": 42}, "6 * 7 is 42."),
        (
            "clock",
            {"city": "Oslo", "zone": "Europe/Oslo", "time": "14:30", "date": "2026-07-01", "weekday": "Wednesday"},
            "In Oslo it is 14:30 on Wednesday, 2026-07-01.",
        ),
        ("search_documents", {"documents": []}, "The handbook says nothing about that."),
        ("send_note", {"delivered_to": "ada", "characters": 2}, "The note to ada is sent."),
        ("slow", {"slept_s": 2.0}, "I waited 2 seconds."),
        ("get_weather", {"sky": "clear", "wind_ms": [3, 4]}, "The tool get weather answered: sky clear, wind ms 3, 4."),
        ("get_weather", "Sunny.", "The tool get weather answered: Sunny."),
        (
            "clock",
            {"error": {"code": "bad_arguments", "message": "unknown place 'Atlantis'"}},
            "The tool clock did not work: unknown place 'Atlantis'.",
        ),
    ],
)
def test_turns_a_result_into_a_sentence(name: str, content: Any, sentence: str) -> None:
    assert after_tool(name, content) == sentence


def test_answers_from_the_history() -> None:
    answer = said(
        [
            {"role": "user", "content": "My name is Ada. I like trains."},
            {"role": "assistant", "content": "Nice to meet you."},
            {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
        ]
    )

    assert answer == "From what I have here: My name is Ada."


def test_says_what_it_can_do_when_nothing_fits() -> None:
    assert said([{"role": "user", "content": "Tell me a joke."}]).startswith(
        'You said: "Tell me a joke." I am a scripted'
    )


def test_says_the_same_twice() -> None:
    messages = [{"role": "user", "content": "Write 300 words about the sea."}]

    assert said(messages) == said(messages)
    assert len(said(messages).split()) == 300


@pytest.mark.parametrize(
    "text", ["", "Plain words, and more.", "a  b\n\tc", "snake_case 12345 x²", "日本語 ünïcödé 👋🏽"]
)
def test_pieces_make_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 9},
        {"type": "integer", "exclusiveMinimum": 7, "multipleOf": 4},
        {"type": "number", "exclusiveMaximum": 0},
        {"type": ["null", "boolean"]},
        {"const": {"a": 1}},
        {"type": "string", "format": "date"},
        {"type": "string", "minLength": 5, "maxLength": 6},
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "minItems": 3,
            "items": {"type": "boolean"},
        },
        {
            "allOf": [
                {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"enum": ["x"]}}},
            ]
        },
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "below": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    },
                    "required": ["name"],
                    "additionalProperties": False,
                }
            },
        },
        {"type": "null"},
        {"items": {"enum": ["x", "y"]}, "minItems": 2, "uniqueItems": True},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3, "uniqueItems": True},
        {"required": ["code"], "properties": {"code": {"const": 7}}},
        *(tool.definition().parameters for tool in toolbox().values()),
    ],
)
def test_fills_in_a_form(schema: dict[str, Any]) -> None:
    jsonschema_rs.validate(schema, fill(schema, text="3 apples, 4.5 pears and 2026-11-23"))


def test_reads_labels_in_the_text() -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}, "size": {"type": "string"}}}

    assert fill(schema, text="Size: large, colour: dark red") == {"colour": "dark red", "size": "large"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "truncated"),
        (b'{"model": "sandbox-1"}', "messages"),
        (b'{"model": "sandbox-1", "messages": [{"role": "wizard"}]}', "wizard"),
        (b'{"model": "sandbox-1", "messages": [{"role": "user"}], "max_tokens": 0}', "max_completion_tokens"),
        (b'{"model": "sandbox-1", "messages": [{"role": "user"}], "tool_choice": "required"}', "tool_choice"),
        (
            b"""{"model": "sandbox-1", "messages": [{"role": "user"}], "tools": [{"function": {"name": "clock"}}],
                 "tool_choice": {"function": {"name": "slow"}}}""",
            "'slow' not found",
        ),
        (b'{"model": "sandbox-1", "messages": [{"role": "tool", "tool_call_id": "c1"}]}', "must answer a tool call"),
    ],
)
def test_refuses_what_openai_refuses(body: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        read_request(body)
