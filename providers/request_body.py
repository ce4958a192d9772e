"""The body of a chat completion: `CompletionRequest` → the OpenAI wire.

Owns the mapping and the few points where endpoints differ. Does not know who sends it. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from agent_exec.contract.agent import NamedToolChoice
from agent_exec.contract.completion import ChatMessage, CompletionRequest
from agent_exec.contract.tool import ToolCall, ToolDefinition

#: What a response format has to be called.
RESPONSE_NAME = "response"
#: OpenAI refuses names beyond these in a conversation, also those that its own model made up.
_NOT_OF_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME_CHARS = 64
#: What OpenAI's strict mode reads; a schema with more is asked for without it, and checked by us alone.
_STRICT_KEYWORDS = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "enum",
        "const",
        "$defs",
        "$ref",
        "title",
        "description",
    }
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one endpoint differs from the others."""

    #: OpenAI's reasoning models refuse `max_tokens`; older compatible servers know nothing else.
    output_limit: Literal["max_completion_tokens", "max_tokens"]
    #: Asks for the schema to be enforced where it can be; others enforce it anyhow, or refuse the word.
    strict_schemas: bool = False


def request_body(request: CompletionRequest, *, dialect: Dialect) -> dict[str, Any]:
    """Return the JSON to send; what is the wire's own default stays out, since each field is one more to be refused."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        dialect.output_limit: request.max_output_tokens,
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.response_format is not None:
        body["response_format"] = _response_format(request.response_format, dialect)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if isinstance(request.tool_choice, NamedToolChoice):
            body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
        elif request.tool_choice != "auto":
            body["tool_choice"] = request.tool_choice
        if not request.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    return body


def prompt_chars(request: CompletionRequest) -> int:
    """Return the size of what the model reads, for an estimate of its tokens."""
    return sum(map(message_chars, request.messages)) + sum(map(tool_chars, request.tools))


def message_chars(message: ChatMessage) -> int:
    """Return the size of one message."""
    return len(message.content) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)


def tool_chars(tool: ToolDefinition) -> int:
    """Return the size of one tool's definition."""
    return len(tool.name) + len(tool.description) + len(msgspec.json.encode(tool.parameters))


def _message(message: ChatMessage) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    if message.tool_calls:
        calls = [_call(call) for call in message.tool_calls]
        return {"role": message.role, "content": message.content or None, "tool_calls": calls}
    return {"role": message.role, "content": message.content}


def _call(call: ToolCall) -> dict[str, Any]:
    name = _NOT_OF_A_NAME.sub("_", call.name)[:_MAX_NAME_CHARS] or "_"
    return {"id": call.id, "type": "function", "function": {"name": name, "arguments": _arguments(call.arguments)}}


def _arguments(written: str) -> str:
    """Return what the model wrote, as a JSON object: vLLM refuses a conversation that holds anything else."""
    try:
        msgspec.json.decode(written, type=dict[str, Any])
    except (ValueError, RecursionError):
        return msgspec.json.encode({"unreadable": written}).decode()
    return written


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _response_format(schema: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    named: dict[str, Any] = {"name": RESPONSE_NAME, "schema": schema}
    if dialect.strict_schemas and schema.get("type") == "object" and _is_strict(schema):
        named["strict"] = True
    return {"type": "json_schema", "json_schema": named}


def _is_strict(schema: Any) -> bool:
    """Whether every object in `schema` is closed, asks for all it names, and uses no keyword beyond strict mode's.

    Source: OpenAI, "Structured model outputs", Supported schemas.
    """
    if not isinstance(schema, dict) or not schema.keys() <= _STRICT_KEYWORDS:
        return False
    properties, definitions = schema.get("properties", {}), schema.get("$defs", {})
    options, required = schema.get("anyOf", []), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(definitions, dict):
        return False
    if not isinstance(options, list) or not isinstance(required, list):
        return False
    is_object = "properties" in schema or schema.get("type") in ("object", ["object", "null"])
    if is_object and (
        schema.get("additionalProperties") is not False or sorted(map(str, required)) != sorted(properties)
    ):
        return False
    items = [schema["items"]] if "items" in schema else []
    return all(_is_strict(part) for part in (*properties.values(), *definitions.values(), *options, *items))
