"""What the steps of an execution have journaled so far, read. Pure.

Owns the shape of each step's result and the names of steps. Does not know Redis, nor what a step does with it.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

from pydantic import Field

from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.model import ContractModel
from agent_exec.contract.operation import QueryResult
from agent_exec.contract.tool import ToolCall, ToolCallRecord, ToolDefinition
from agent_exec.ledger.record import ExecutionRecord, result_field
from agent_exec.routing import step_kind

PROMPT_STEP = "prompt"
RETRIEVAL_STEP = "operation.query"
#: Snapshots that a process remembers, and the longest JSON of one: some 20 MB at most, and every agent of a busy hour.
SNAPSHOTS = 256
SMALL_CHARS = 16_384


def completion_step(turn: int) -> str:
    """Return the name of the completion step of a turn, from 1."""
    return f"completion.{turn}"


def tool_call_step(turn: int, index: int) -> str:
    """Return the name of the step of one tool call of a turn."""
    return f"tool_call.{turn}.{index}"


def read_by(step: str) -> list[str]:
    """Return which fields of its execution's record a step reads; an empty list for all.

    The prompt and the completions read the message and the whole conversation; what a tool call costs must not grow with it.
    """
    if step_kind(step) != "tool_call":
        return []
    turn = int(step.split(".")[1])
    journaled = [result_field(PROMPT_STEP), result_field(completion_step(turn))]
    return ["tenant", "agent", "wish", "cancel_ms", "deadline_ms", *journaled]


class Snapshot(ContractModel):
    """What the prompt step fixes for the whole execution: no later change elsewhere touches it."""

    config: AgentConfig
    tenant: Tenant
    system_prompt: str = ""
    tools: list[ToolDefinition] = Field(default_factory=list)


def read_snapshot(stored: str) -> Snapshot:
    """Return the snapshot in its JSON. Steps at once of the same agent hold the same one, unless it is large."""
    return _small_snapshot(stored) if len(stored) <= SMALL_CHARS else Snapshot.model_validate_json(stored)


@lru_cache(maxsize=SNAPSHOTS)
def _small_snapshot(stored: str) -> Snapshot:
    return Snapshot.model_validate_json(stored)


class Journal:
    """The results of an execution's steps."""

    def __init__(self, execution: ExecutionRecord) -> None:
        """Take the execution; results are decoded when asked for."""
        self.execution = execution

    @cached_property
    def snapshot(self) -> Snapshot | None:
        """What the prompt step fixed, once it has."""
        stored = self.execution.result(PROMPT_STEP)
        return None if stored is None else read_snapshot(stored)

    @property
    def fixed(self) -> Snapshot:
        """What the prompt step fixed; every step after it may rely on that."""
        assert self.snapshot is not None, "only the prompt step runs before there is a snapshot"
        return self.snapshot

    @cached_property
    def retrieved(self) -> QueryResult | None:
        """The documents of the retrieval step, if there was one."""
        stored = self.execution.result(RETRIEVAL_STEP)
        return None if stored is None else QueryResult.model_validate_json(stored)

    @cached_property
    def turns(self) -> list[CompletionResponse]:
        """The model's answers so far, in order."""
        answers: list[CompletionResponse] = []
        while (stored := self.execution.result(completion_step(len(answers) + 1))) is not None:
            answers.append(CompletionResponse.model_validate_json(stored))
        return answers

    def call(self, turn: int, index: int) -> ToolCall:
        """Return the call that the model made in `turn` at `index`."""
        stored = self.execution.result(completion_step(turn))
        assert stored is not None, "the model asked for it"
        return CompletionResponse.model_validate_json(stored).tool_calls[index]

    def tool_records(self, turn: int) -> list[ToolCallRecord]:
        """Return the finished calls of a turn, in the order in which the model made them."""
        stored = [
            self.execution.result(tool_call_step(turn, index)) for index in range(len(self.turns[turn - 1].tool_calls))
        ]
        return [ToolCallRecord.model_validate_json(one) for one in stored if one is not None]

    @cached_property
    def all_tool_records(self) -> list[ToolCallRecord]:
        """All finished tool calls."""
        return [record for turn in range(1, len(self.turns) + 1) for record in self.tool_records(turn)]

    @cached_property
    def usage(self) -> Usage:
        """The tokens and the money of all turns."""
        total = Usage()
        for answer in self.turns:
            total = total.plus(answer.usage)
        return total
