"""A turn of the scripted model in the words of the OpenAI wire: streamed in chunks, or whole.

Owns the JSON of an answer, for OpenAI and for Groq. Does not know sockets or time, beyond what it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

import msgspec

from sandbox.scripted_model import Answer, Turn, pieces

Provider = Literal["openai", "groq"]
FinishReason = Literal["stop", "tool_calls", "length"]

_encode = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk adds, and how many tokens that is: none for the head of a message or a call."""

    delta: dict[str, Any]
    tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. Its words follow from the request; its ids are unique, as a provider's are."""

    provider: Provider
    model: str
    created_s: int
    pieces: tuple[Piece, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    id: str

    @property
    def completion_tokens(self) -> int:
        """The tokens of the answer."""
        return sum(piece.tokens for piece in self.pieces)

    def chunks(self, *, with_usage: bool) -> Iterator[tuple[bytes, int]]:
        """Yield the stream: server-sent events, each with the tokens it carries."""
        head: dict[str, Any] = {"id": self.id, "object": "chat.completion.chunk", "created": self.created_s}
        head |= {"model": self.model, "system_fingerprint": "fp_sandbox"}
        tail: dict[str, Any] = {"usage": None} if with_usage else {}
        for piece in self.pieces:
            yield _event({**head, "choices": [_choice(delta=piece.delta)], **tail}), piece.tokens
        last = {**head, "choices": [_choice(delta={}, finish_reason=self.finish_reason)], **tail}
        if self.provider == "groq":
            last["x_groq"] = {"id": f"req_{self.id}", "usage": self._usage()}
        yield _event(last), 0
        if with_usage:
            yield _event({**head, "choices": [], "usage": self._usage()}), 0
        yield _DONE, 0

    def whole(self) -> bytes:
        """Return the answer as one JSON document."""
        answer = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": "fp_sandbox",
            "choices": [
                {"index": 0, "message": self._message(), "logprobs": None, "finish_reason": self.finish_reason}
            ],
            "usage": self._usage(),
        }
        if self.provider == "groq":
            answer["x_groq"] = {"id": f"req_{self.id}"}
        return _encode(answer)

    def _message(self) -> dict[str, Any]:
        text: list[str] = []
        calls: list[dict[str, Any]] = []
        for piece in self.pieces:
            text.append(piece.delta.get("content") or "")
            for part in piece.delta.get("tool_calls", []):
                if "id" in part:
                    called = {"name": part["function"]["name"], "arguments": ""}
                    calls.append({"id": part["id"], "type": "function", "function": called})
                else:
                    calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls else "".join(text), "refusal": None}
        return message | ({"tool_calls": calls} if calls else {})

    def _usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.provider == "groq":
            # Groq measures itself; these are the speeds it advertises for a 70-billion model.
            times = {"prompt_time": self.prompt_tokens / 5_000, "completion_time": self.completion_tokens / 300}
            usage |= {"queue_time": 0.05, **times, "total_time": sum(times.values())}
        return usage


def completion_of(
    turn: Turn, *, provider: Provider, model: str, created_s: int, prompt_tokens: int, token_limit: int | None
) -> Completion:
    """Return `turn` on the wire, cut off after `token_limit` tokens with the finish reason `length`."""
    whole = list(_deltas(turn))
    kept, left = [], token_limit
    for piece in whole:
        if left is not None and piece.tokens > left:
            break
        left = None if left is None else left - piece.tokens
        kept.append(piece)
    reason: FinishReason = "stop" if isinstance(turn, Answer) else "tool_calls"
    return Completion(
        provider=provider,
        model=model,
        created_s=created_s,
        pieces=tuple(kept),
        finish_reason=reason if len(kept) == len(whole) else "length",
        prompt_tokens=prompt_tokens,
        id=f"chatcmpl-{uuid4().hex}",
    )


def _deltas(turn: Turn) -> Iterator[Piece]:
    if isinstance(turn, Answer):
        yield Piece({"role": "assistant", "content": "", "refusal": None}, 0)
        for piece in pieces(turn.text):
            yield Piece({"content": piece}, 1)
        return
    yield Piece({"role": "assistant", "content": None}, 0)
    for index, call in enumerate(turn.calls):
        function = {"name": call.name, "arguments": ""}
        head = {"index": index, "id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}
        yield Piece({"tool_calls": [head]}, 0)
        for piece in pieces(call.arguments):
            yield Piece({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, 1)


def _choice(*, delta: dict[str, Any], finish_reason: FinishReason | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"
