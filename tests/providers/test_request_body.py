from __future__ import annotations

import json
from typing import Any

import pytest

from agent_exec.contract.agent import NamedToolChoice
from agent_exec.contract.completion import ChatMessage, CompletionRequest
from agent_exec.contract.tool import ToolCall, ToolDefinition
from providers.request_body import Dialect, prompt_chars, request_body

OPENAI = Dialect(output_limit="max_completion_tokens", strict_schemas=True)
COMPATIBLE = Dialect(output_limit="max_tokens")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = ToolDefinition(name="get_weather", description="Weather of a city", parameters=PARAMETERS)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def request(**fields: Any) -> CompletionRequest:
    messages = fields.pop("messages", [ChatMessage(role="user", content="Weather in Lima?")])
    return CompletionRequest(provider="openai", model="gpt-4o", messages=messages, **fields)


def body_of(dialect: Dialect = OPENAI, **fields: Any) -> dict[str, Any]:
    return request_body(request(**fields), dialect=dialect)


def test_a_plain_turn() -> None:
    assert body_of() == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Weather in Lima?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 1024,
    }


def test_older_servers_know_max_tokens() -> None:
    body = body_of(COMPATIBLE, max_output_tokens=7, temperature=0.0)
    assert (body["max_tokens"], body["temperature"]) == (7, 0.0)
    assert "max_completion_tokens" not in body


def test_a_conversation_with_tools() -> None:
    call = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Lima"}')
    messages = [
        ChatMessage(role="system", content="You help."),
        ChatMessage(role="user", content="Weather in Lima?"),
        ChatMessage(role="assistant", tool_calls=[call]),
        ChatMessage(role="tool", tool_call_id="call_1", content="sunny"),
        ChatMessage(role="assistant", content="Sunny.", tool_calls=[call]),
    ]
    wire_call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Lima"}'},
    }
    body = body_of(messages=messages, tools=[WEATHER])
    assert body["messages"] == [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "Weather in Lima?"},
        {"role": "assistant", "content": None, "tool_calls": [wire_call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny.", "tool_calls": [wire_call]},
    ]
    function = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body.keys().isdisjoint({"tool_choice", "parallel_tool_calls"})


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        ("none", "none"),
        ("required", "required"),
        (NamedToolChoice(name="get_weather"), {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_a_choice_of_tool(choice: Any, wire: Any) -> None:
    assert body_of(tools=[WEATHER], tool_choice=choice)["tool_choice"] == wire


def test_what_is_about_tools_is_sent_with_tools_only() -> None:
    assert body_of(tools=[WEATHER], parallel_tool_calls=False)["parallel_tool_calls"] is False
    alone = body_of(tool_choice="required", parallel_tool_calls=False)
    assert alone.keys().isdisjoint({"tools", "tool_choice", "parallel_tool_calls"})


@pytest.mark.parametrize("arguments", ["city=Lima", "[1]", "5", "", "[" * 100_000, '{"a": NaN}'])
def test_arguments_that_are_no_object_go_back_as_one(arguments: str) -> None:
    call = ToolCall(id="call_1", name="f", arguments=arguments)
    [message] = body_of(messages=[ChatMessage(role="assistant", tool_calls=[call])])["messages"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"unreadable": arguments}


@pytest.mark.parametrize(
    ("name", "wire"), [("functions.get weather", "functions_get_weather"), ("x" * 200, "x" * 64), ("", "_")]
)
def test_a_name_that_the_model_made_up_goes_back_as_a_name(name: str, wire: str) -> None:
    call = ToolCall(id="call_1", name=name, arguments="{}")
    [message] = body_of(messages=[ChatMessage(role="assistant", tool_calls=[call])])["messages"]
    assert message["tool_calls"][0]["function"]["name"] == wire


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        pytest.param(CITY, True, id="closed"),
        pytest.param(CITY | {"title": "City", "$defs": {"c": CITY}}, True, id="definitions"),
        pytest.param(CITY | {"properties": {"city": {"type": "array", "items": CITY}}}, True, id="array"),
        pytest.param(CITY | {"properties": {"city": {"anyOf": [CITY, {"type": "null"}]}}}, True, id="any of"),
        pytest.param(CITY | {"properties": {"city": {"type": "array", "items": True}}}, False, id="any items"),
        pytest.param(CITY | {"properties": {"city": {"type": ["object", "null"]}}}, False, id="open inner"),
        pytest.param({**CITY, "additionalProperties": True}, False, id="open"),
        pytest.param({**CITY, "required": []}, False, id="optional"),
        pytest.param({**CITY, "minProperties": 1}, False, id="another keyword"),
        pytest.param({"type": "array", "items": CITY}, False, id="no object"),
        pytest.param({"type": 7}, False, id="no schema"),
        pytest.param(CITY | {"properties": ["city"]}, False, id="properties of another type"),
        pytest.param(CITY | {"required": "city"}, False, id="required of another type"),
        pytest.param(CITY | {"anyOf": {}, "$defs": []}, False, id="others of another type"),
    ],
)
def test_a_response_format(schema: dict[str, Any], strict: bool) -> None:
    named: dict[str, Any] = {"name": "response", "schema": schema}
    assert body_of(COMPATIBLE, response_format=schema)["response_format"] == {
        "type": "json_schema",
        "json_schema": named,
    }
    named |= {"strict": True} if strict else {}
    assert body_of(OPENAI, response_format=schema)["response_format"] == {"type": "json_schema", "json_schema": named}


def test_the_size_of_a_prompt() -> None:
    call = ToolCall(id="call_1", name="f", arguments="{}")
    messages = [ChatMessage(role="user", content="12345"), ChatMessage(role="assistant", tool_calls=[call])]
    alone = prompt_chars(request(messages=messages))
    assert alone == 8
    assert prompt_chars(request(messages=messages, tools=[WEATHER])) > alone + len(WEATHER.description)
