"""What a provider is to the rest of the service: one call, answered by a stream of deltas.

Owns the closed union `Delta` and the protocol. Does not know SDKs, bytes or retries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from agent_exec.contract.completion import CompletionRequest, FinishReason, Usage
from agent_exec.contract.tool import ToolCall


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thought aloud, never empty and never part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer: exactly one, and last.

    `reason` is `tool_calls` exactly when the model stopped by itself and asked for tools. Under `length`, the last of
    `tool_calls` may be cut off in mid-argument. `model` is the provider's name for it; the one asked for if it gave none.
    """

    reason: FinishReason
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    model: str
    #: We cut the answer, at a bound of `chat_stream`; `reason` is then `length`.
    truncated: bool = False
    #: Some number in `usage` is ours: the provider gave none, or one that cannot be.
    usage_estimated: bool = False


Delta = Text | Reasoning | Finished


class Provider(Protocol):
    """One endpoint with one key."""

    name: str

    def stream(self, request: CompletionRequest) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """Ask once, without a retry; the deltas end with one `Finished`.

        Leaving the context closes the provider's socket at once, also on cancellation. A stream that was read to its
        end leaves the connection for the next call.

        Raises:
            ProviderError: on entering, or between deltas.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection; streams still open break with `ProviderUnreachable`."""
        ...
