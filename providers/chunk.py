"""One chunk of a streamed completion: JSON bytes → `Chunk`.

Owns what a chunk may look like. A well-formed one takes the compiled path; any other is read field by field, and what
makes no sense in it is left out. Does not know what came before or what it adds up to. No I/O.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec


class FunctionPart(msgspec.Struct, gc=False):
    """A piece of a call: its name, or more of its arguments."""

    name: str | None = None
    arguments: str | None = None


class CallPart(msgspec.Struct, gc=False):
    """A piece of the call at `index`."""

    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class MessagePart(msgspec.Struct, gc=False):
    """What a chunk adds. `refusal` is the model's own words for why it will not answer."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPart] | None = None


class Choice(msgspec.Struct, gc=False):
    """One of the answers; we ask for one only."""

    delta: MessagePart | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct, gc=False):
    """`cached_tokens` are part of the prompt's tokens, and cheaper."""

    cached_tokens: int | None = None


class UsageReport(msgspec.Struct, gc=False):
    """Tokens as the provider counted them; nothing about them is sure."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class GroqPart(msgspec.Struct, gc=False):
    """What Groq adds of its own, in the last chunk."""

    usage: UsageReport | None = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """One chunk. `error` is whatever JSON the server wrote there; `choices` is empty in a chunk about usage alone."""

    choices: list[Choice] | None = None
    usage: UsageReport | None = None
    model: str | None = None
    error: Any = None
    x_groq: GroqPart | None = None


_decode = msgspec.json.Decoder(Chunk).decode


def read_chunk(data: bytes) -> Chunk:
    """Return the chunk that `data` holds.

    Raises:
        ValueError: not a JSON object.
    """
    try:
        chunk = _decode(data)
    except (ValueError, RecursionError):
        return _picked(read_object(data))
    if chunk.choices is None and chunk.usage is None and chunk.error is None and chunk.x_groq is None:
        return _picked(read_object(data))
    return chunk


def read_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`, with Python's leniency: half a surrogate pair and NaN pass.

    Raises:
        ValueError: not a JSON object.
    """
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"JSON, but no object: {type(value).__name__}")
    return value


def _picked(value: dict[str, Any]) -> Chunk:
    error = value.get("error")
    if not error and value.get("object") == "error":
        error = value  # older vLLM: the chunk is the error
    groq = _object(value.get("x_groq"))
    choices = value.get("choices")
    return Chunk(
        choices=[_choice(_object(choice)) for choice in choices] if isinstance(choices, list) else None,
        usage=_usage(value.get("usage")),
        model=_text(value.get("model")),
        error=error,
        x_groq=GroqPart(usage=_usage(groq.get("usage")), error=groq.get("error")) if groq else None,
    )


def _choice(value: dict[str, Any]) -> Choice:
    delta = _object(value.get("delta"))
    content, thought = _content(delta.get("content"))
    calls = delta.get("tool_calls")
    return Choice(
        delta=MessagePart(
            content=content,
            reasoning=_text(delta.get("reasoning")) or thought,
            reasoning_content=_text(delta.get("reasoning_content")),
            refusal=_text(delta.get("refusal")),
            tool_calls=[_call(_object(call)) for call in calls] if isinstance(calls, list) else None,
        ),
        finish_reason=_text(value.get("finish_reason")),
    )


def _content(value: Any) -> tuple[str | None, str | None]:
    """Return text and thought: Mistral streams content as a list of typed parts, the thinking ones nested once more."""
    if not isinstance(value, list):
        return _text(value), None
    parts = [_object(part) for part in value]
    said = [text for part in parts if (text := _text(part.get("text")))]
    thinking = [part["thinking"] for part in parts if isinstance(part.get("thinking"), list)]
    thought = [text for inner in thinking for part in inner if (text := _text(_object(part).get("text")))]
    return "".join(said), "".join(thought)


def _call(value: dict[str, Any]) -> CallPart:
    index = value.get("index")
    function = _object(value.get("function"))
    arguments = function.get("arguments")
    if isinstance(arguments, dict | list):
        arguments = json.dumps(arguments, ensure_ascii=False)  # some servers forget that arguments are text
    identity = value.get("id")
    return CallPart(
        index=index if isinstance(index, int) and not isinstance(index, bool) else None,
        id=str(identity) if isinstance(identity, str | int) else None,
        function=FunctionPart(name=_text(function.get("name")), arguments=_text(arguments)),
    )


def _usage(value: Any) -> UsageReport | None:
    if not isinstance(value, dict):
        return None
    return UsageReport(
        prompt_tokens=_count(value.get("prompt_tokens")),
        completion_tokens=_count(value.get("completion_tokens")),
        total_tokens=_count(value.get("total_tokens")),
        prompt_tokens_details=PromptDetails(_count(_object(value.get("prompt_tokens_details")).get("cached_tokens"))),
    )


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
