"""What follows a step: a closed union, and the functions that choose from it. Pure.

Owns the agent loop's shape and its limits. Does not know how a step is done or a choice carried out.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_exec.contract.agent import Limits
from agent_exec.contract.completion import CompletionResponse
from agent_exec.errors import ContentFiltered, ExecutionError, LimitExceeded
from tasks.journal import Journal, Snapshot


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Ask the orchestrator for documents."""


@dataclass(frozen=True, slots=True)
class AskModel:
    """Ask the model for turn `turn`."""

    turn: int


@dataclass(frozen=True, slots=True)
class CallTools:
    """Run the `count` tool calls of `turn` in parallel; the next turn waits for all of them."""

    turn: int
    count: int


@dataclass(frozen=True, slots=True)
class Join:
    """One tool call of `turn` is done; the last one asks the model again."""

    turn: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The execution is complete."""

    answer: CompletionResponse


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Try the same step again in `due_in_s`, because of `error`."""

    due_in_s: float
    error: ExecutionError


@dataclass(frozen=True, slots=True)
class Fail:
    """The execution has failed.

    `answer` is the whole turn that it failed on, if there is one: it was paid for. `partial` is what the model had said in a
    turn that was cut off.
    """

    error: ExecutionError
    answer: CompletionResponse | None = None
    partial: str = ""


Next = Retrieve | AskModel | CallTools | Join | Finish | WaitUntil | Fail


def after_prompt(snapshot: Snapshot) -> Next:
    """Return what follows the prompt step."""
    return Retrieve() if snapshot.config.retrieval.enabled else AskModel(1)


def after_completion(answer: CompletionResponse, *, turn: int, journal: Journal) -> Next:
    """Return what follows the model's answer of `turn`; `journal` holds the turns before it."""
    if answer.finish_reason == "content_filter":
        filtered = "The provider's filter, or the model itself, refused to answer this."
        return Fail(ContentFiltered(filtered, provider=answer.provider), answer=answer)
    if not answer.tool_calls:
        return Finish(answer)
    exceeded = _exceeded(answer, turn=turn, journal=journal, limits=journal.fixed.config.limits)
    if exceeded is not None:
        return Fail(LimitExceeded(f"{exceeded} Raise the agent's limits, or ask for less."), answer=answer)
    return CallTools(turn=turn, count=len(answer.tool_calls))


def _exceeded(answer: CompletionResponse, *, turn: int, journal: Journal, limits: Limits) -> str | None:
    calls = len(journal.all_tool_records) + len(answer.tool_calls)
    used = journal.usage.plus(answer.usage)
    if turn >= limits.max_turns:
        return f"The model wants another turn after {turn}; max_turns is {limits.max_turns}."
    if calls > limits.max_tool_calls:
        return f"The model asked for {calls} tool calls in all; max_tool_calls is {limits.max_tool_calls}."
    if used.total_tokens >= limits.max_total_tokens:
        return f"{used.total_tokens} tokens are used; max_total_tokens is {limits.max_total_tokens}."
    if used.cost_usd is not None and used.cost_usd >= limits.max_cost_usd:
        return f"{used.cost_usd:.4f} USD are spent; max_cost_usd is {limits.max_cost_usd}."
    return None
