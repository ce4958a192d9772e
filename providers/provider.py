"""What a provider is to the rest of the service: one call, answered by a stream of deltas.

Owns the closed union `Delta` and the protocols. Does not know SDKs, bytes, keys or retries. Every call can be paid for,
however it ends:

    call = provider.stream(request)
    try:
        async with call as deltas:
            ...
    finally:
        bill(call.spent)                  # also on a ProviderError, on cancellation, and when left early
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from agent_exec.contract.completion import CompletionRequest, FinishReason, Usage
from agent_exec.contract.tool import ToolCall
from providers.quota import Quota


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


@dataclass(frozen=True, slots=True)
class Spent:
    """What a call has used. `estimated`: some number in `usage` is ours, for the provider gave none, or not yet."""

    usage: Usage
    estimated: bool


class Call(AbstractAsyncContextManager[AsyncIterator[Delta]], Protocol):
    """One call; entered once. The deltas end with one `Finished`.

    Leaving the context closes the provider's socket at once, also on cancellation. A stream that was read to its end
    leaves the connection for the next call.

    Raises:
        ProviderError: on entering, or between deltas.
    """

    @property
    def spent(self) -> Spent | None:
        """What was used so far, at any moment; None while nothing was asked, and where the provider refused.

        After `Finished` it is the provider's count. Before, the prompt counts as soon as the request may have arrived, and
        what was streamed counts by its length.
        """
        ...

    @property
    def quota(self) -> Quota | None:
        """What the head of the answer, or of the refusal, told of the provider's limits; None before there is one."""
        ...


class Provider(Protocol):
    """One endpoint with one key."""

    name: str
    #: Names the key, and tells nothing of it: equal for equal keys of one endpoint, whichever tenants have them.
    key_fingerprint: str

    def worst_case(self, request: CompletionRequest) -> Usage:
        """Return what a call comes to at most: the prompt by its length, and the whole answer that it may have."""
        ...

    def stream(self, request: CompletionRequest) -> Call:
        """Return a call that asks once, without a retry, when it is entered."""
        ...
