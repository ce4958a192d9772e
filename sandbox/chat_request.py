"""A chat completion request of the OpenAI wire, decoded and checked as OpenAI checks it.

Owns the fields that the scripted model reads; others pass unread. Does not know the answer.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class TextPart(msgspec.Struct):
    """A piece of a message; of a picture nothing is read."""

    type: str
    text: str = ""


class CalledFunction(msgspec.Struct):
    """What the assistant called."""

    name: str
    arguments: str


class AssistantCall(msgspec.Struct):
    """One call of an assistant's message."""

    id: str
    function: CalledFunction


class ChatMessage(msgspec.Struct):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[AssistantCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The words of the message."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class OfferedFunction(msgspec.Struct):
    """A tool the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = {}  # msgspec copies it for each instance


class OfferedTool(msgspec.Struct):
    """The wrapper around it."""

    function: OfferedFunction


class ChosenFunction(msgspec.Struct):
    """The name of the one tool to call."""

    name: str


class ToolChoice(msgspec.Struct):
    """The wrapper around it."""

    function: ChosenFunction


class NamedSchema(msgspec.Struct):
    """The schema that the answer has to fit."""

    name: str
    schema: dict[str, Any] = {}


class ResponseFormat(msgspec.Struct):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StreamOptions(msgspec.Struct):
    """Whether the stream ends with a usage chunk."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """The body of `POST …/chat/completions`."""

    model: str
    messages: list[ChatMessage]
    tools: list[OfferedTool] = []
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens of the answer."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def schema(self) -> dict[str, Any] | None:
        """The schema of the answer, `{}` for any JSON, null for text."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        return self.response_format.json_schema.schema if self.response_format.json_schema else {}


class BadRequest(ValueError):
    """The provider would refuse this; says why."""


_decoder = msgspec.json.Decoder(ChatRequest)


def read_request(body: bytes) -> ChatRequest:
    """Return the request.

    Raises:
        BadRequest: not JSON, not of the wire, or a conversation whose tool calls and answers do not pair up.
    """
    try:
        request = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(str(error)) from None
    if not request.messages:
        raise BadRequest("Invalid 'messages': empty array. Expected an array with minimum length 1.")
    if request.token_limit is not None and request.token_limit < 1:
        raise BadRequest("Invalid 'max_completion_tokens': expected a value >= 1.")
    if request.tool_choice not in (None, "none", "auto") and not request.tools:
        raise BadRequest("Invalid 'tool_choice': only allowed when 'tools' are specified.")
    if isinstance(request.tool_choice, ToolChoice):
        chosen = request.tool_choice.function.name
        if all(tool.function.name != chosen for tool in request.tools):
            raise BadRequest(f"Tool choice {chosen!r} not found in 'tools' parameter.")
    _check_pairs(request.messages)
    return request


def _check_pairs(messages: list[ChatMessage]) -> None:
    unanswered: set[str] = set()
    for place, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in unanswered:
                raise BadRequest(
                    f"Invalid 'messages[{place}]': a 'tool' message must answer a tool call of the assistant before it."
                )
            unanswered.discard(message.tool_call_id)
        elif unanswered:
            break
        else:
            unanswered = {call.id for call in message.tool_calls or []}
    if unanswered:
        raise BadRequest(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'."
            f" These had no response: {', '.join(sorted(unanswered))}."
        )
