"""What follows a step: a closed union, and the functions that choose from it. Pure.

Owns the agent loop's shape and its limits. Does not know how a step is done or a choice carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from agent_exec.contract.agent import AgentConfig, Limits
from agent_exec.contract.completion import CompletionResponse
from agent_exec.contract.model import Json
from agent_exec.errors import ContentFiltered, ExecutionError, LimitExceeded, OutputInvalid
from tasks import window
from tasks.journal import Journal
from tasks.structured import Fits, Unfit, read_answer
from tasks.tool_fault import MENDABLE, Unsound, examined


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Ask the orchestrator for documents."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Ask the orchestrator which documents are nearest to the query: not all of them fit."""


@dataclass(frozen=True, slots=True)
class Summarise:
    """Sum up what no longer fits, if anything does not, before turn `turn`."""

    turn: int


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
    """The execution is complete; `structured` is the value in the answer, where the agent asks for one."""

    answer: CompletionResponse
    structured: Json = None


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Try the same step again in `due_in_s`, because of `error`; it is counted as a retry. `note` is kept for it."""

    due_in_s: float
    error: ExecutionError
    note: str = ""


@dataclass(frozen=True, slots=True)
class Defer:
    """Do the same step in `due_in_s`: nothing has failed, so nothing is counted. `code` says in the event why."""

    due_in_s: float
    code: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Park:
    """Do the same step once a word named `awaits` has come from outside, or `due_in_s` have passed without one."""

    due_in_s: float
    awaits: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fail:
    """The execution has failed.

    `answer` is the whole turn that it failed on, if there is one: it was paid for. `partial` is what the model had said in a
    turn that was cut off.
    """

    error: ExecutionError
    answer: CompletionResponse | None = None
    partial: str = ""


Ask = Summarise | AskModel
Next = Retrieve | Rank | Ask | CallTools | Join | Finish | WaitUntil | Defer | Park | Fail


def after_prompt(journal: Journal) -> Next:
    """Return what follows the prompt step; `journal` holds what it has fixed."""
    return Retrieve() if journal.fixed.config.retrieval.enabled else after_retrieval(journal)


def after_retrieval(journal: Journal) -> Next:
    """Return what follows once all documents are there; `journal` holds them."""
    config = journal.fixed.config
    return Rank() if window.documents_overflow(journal, choice=config.choice) else ask(config, turn=1)


def ask(config: AgentConfig, *, turn: int) -> Ask:
    """Return how the model is asked for a turn. What is to be summed up is known once all the turn's tools have answered."""
    return Summarise(turn) if config.context.policy == "summarise" else AskModel(turn)


def after_completion(answer: CompletionResponse, *, turn: int, journal: Journal, max_repairs: int) -> Next:
    """Return what follows the model's answer of `turn`; `journal` holds the turns before it."""
    if answer.finish_reason == "content_filter":
        filtered = "The provider's filter, or the model itself, refused to answer this."
        return Fail(ContentFiltered(filtered, provider=answer.provider), answer=answer)
    config = journal.fixed.config
    exceeded = _exceeded(answer, turn=turn, journal=journal, limits=config.limits)
    if not answer.tool_calls:
        match read_answer(answer.text, config.response_format):
            case Fits(value):
                return Finish(answer, structured=value)
            case Unfit(faults):
                may_mend = answer.finish_reason == "stop" and journal.repairs < max_repairs and exceeded is None
                return ask(config, turn=turn + 1) if may_mend else Fail(_unfit(answer, faults), answer=answer)
            case other:
                assert_never(other)
    if exceeded is not None:
        return Fail(LimitExceeded(f"{exceeded} Raise the agent's limits, or ask for less."), answer=answer)
    if _never_mended(answer, turn=turn, journal=journal, max_repairs=max_repairs):
        never = f"The model has called tools for {max_repairs + 1} turns, and no call was one that could be made."
        return Fail(LimitExceeded(f"{never} Simplify the tools' parameters, or choose another model."), answer=answer)
    return CallTools(turn=turn, count=len(answer.tool_calls))


def _never_mended(answer: CompletionResponse, *, turn: int, journal: Journal, max_repairs: int) -> bool:
    """Say whether no call of this turn, nor of the `max_repairs` turns before it, was one that could be made."""
    if turn <= max_repairs:
        return False
    before = [journal.tool_records(number) for number in range(turn - max_repairs, turn)]
    errors = [[record.error for record in records] for records in before]
    calls = [examined(call, journal.fixed.tools) for call in answer.tool_calls]
    errors.append([call.error if isinstance(call, Unsound) else None for call in calls])
    return all(of_turn and all(error and error.code in MENDABLE for error in of_turn) for of_turn in errors)


def _unfit(answer: CompletionResponse, faults: list[str]) -> OutputInvalid:
    wrong = "; ".join(faults)
    if answer.finish_reason == "length":
        return OutputInvalid(
            f"The model's answer was cut off before it fitted the agent's response_format: {wrong}. Raise the agent's "
            "max_output_tokens."
        )
    return OutputInvalid(f"The model's answer does not fit the agent's response_format: {wrong}.")


def _exceeded(answer: CompletionResponse, *, turn: int, journal: Journal, limits: Limits) -> str | None:
    calls = journal.tool_calls + len(answer.tool_calls)
    turns = turn + journal.below.turns
    used = journal.usage.plus(answer.usage)
    if turns >= limits.max_turns:
        return f"The model wants another turn after {turns}; max_turns is {limits.max_turns}."
    if calls > limits.max_tool_calls:
        return f"The model asked for {calls} tool calls in all; max_tool_calls is {limits.max_tool_calls}."
    if used.total_tokens >= limits.max_total_tokens:
        return f"{used.total_tokens} tokens are used; max_total_tokens is {limits.max_total_tokens}."
    if used.cost_usd is not None and used.cost_usd >= limits.max_cost_usd:
        return f"{used.cost_usd:.4f} USD are spent; max_cost_usd is {limits.max_cost_usd}."
    return None
