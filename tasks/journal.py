"""What the steps of an execution have journaled so far, read. Pure.

Owns the shape of each step's result and the names of steps. Does not know Redis, nor what a step does with it.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Annotated

from pydantic import Field, JsonValue

from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.model import ContractModel, Json
from agent_exec.contract.operation import Document, QueryResult
from agent_exec.contract.tool import ToolCall, ToolCallRecord, ToolDefinition
from agent_exec.ledger.record import ExecutionRecord, result_field
from agent_exec.routing import step_kind

PROMPT_STEP = "prompt"
RETRIEVAL_STEP = "operation.query"
RANKING_STEP = "operation.embedding"
#: Snapshots that a process remembers, and the longest JSON of one: some 20 MB at most, and every agent of a busy hour.
SNAPSHOTS = 256
SMALL_CHARS = 16_384


def completion_step(turn: int) -> str:
    """Return the name of the completion step of a turn, from 1."""
    return f"completion.{turn}"


def summary_step(turn: int) -> str:
    """Return the name of the step before the completion of a turn that sums up what no longer fits."""
    return f"operation.summary.{turn}"


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
    return ["tenant", "agent", "wish", "cancel_ms", "deadline_ms", "linked", *journaled]


class Snapshot(ContractModel):
    """What the prompt step fixes for the whole execution: no later change elsewhere touches it."""

    config: AgentConfig
    tenant: Tenant
    system_prompt: str = ""
    tools: list[ToolDefinition] = Field(default_factory=list)


class Below(ContractModel):
    """What children have used, with all below them: what was of use, what was not, and what counts to their number."""

    usage: Usage = Usage()
    wasted: Usage = Usage()
    turns: Annotated[int, Field(ge=0)] = 0
    tool_calls: Annotated[int, Field(ge=0)] = 0

    def plus(self, other: Below) -> Below:
        """Return the sum."""
        return Below(
            usage=self.usage.plus(other.usage),
            wasted=self.wasted.plus(other.wasted),
            turns=self.turns + other.turns,
            tool_calls=self.tool_calls + other.tool_calls,
        )


class JournaledCall(ToolCallRecord):
    """A finished tool call: the record that everybody sees; what the model alone is shown in place of its result; and where
    it asked another agent, what that has used.
    """

    unredacted: Json = None
    below: Below | None = None

    @property
    def shown(self) -> JsonValue:
        """What the model is shown of the result."""
        return self.result if self.unredacted is None else self.unredacted


class Ranking(ContractModel):
    """Which documents are shown: their places among all of them, the nearest to the query first. `model` measured it."""

    model: str
    kept: list[int]


class Summary(ContractModel):
    """The words that stand for the `covers` oldest parts of a conversation, and what they cost; 0 where all fitted."""

    covers: int = 0
    text: str = ""
    usage: Usage = Usage()
    #: What earlier attempts at it had used, as far as it is known.
    wasted: Usage = Usage()


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

    def and_then(self, step: str, result: str) -> Journal:
        """Return the journal as it is once `step` has journaled `result`."""
        return Journal(ExecutionRecord({**self.execution.fields, result_field(step): result}))

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
    def documents(self) -> list[Document]:
        """The caller's documents and the retrieved ones; where they were ranked, those kept, the nearest first."""
        found = self.retrieved.documents if self.retrieved is not None else []
        documents = [*self.execution.message.payload.context.documents, *found]
        stored = self.execution.result(RANKING_STEP)
        return documents if stored is None else [documents[place] for place in Ranking.model_validate_json(stored).kept]

    @property
    def summary(self) -> Summary:
        """What was summed up last; it stands for all before it."""
        return next((summary for summary in reversed(self._summed_up) if summary.covers), Summary())

    @cached_property
    def _summed_up(self) -> list[Summary]:
        stored = [self.execution.result(summary_step(turn)) for turn in range(1, len(self.turns) + 2)]
        return [Summary.model_validate_json(one) for one in stored if one is not None]

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

    def tool_records(self, turn: int) -> list[JournaledCall]:
        """Return the finished calls of a turn, in the order in which the model made them."""
        return self._calls[turn - 1]

    @property
    def all_tool_records(self) -> list[ToolCallRecord]:
        """All finished tool calls."""
        return [record for records in self._calls for record in records]

    @cached_property
    def _calls(self) -> list[list[JournaledCall]]:
        """The finished calls of each turn."""
        results = [
            [self.execution.result(tool_call_step(turn, index)) for index in range(len(answer.tool_calls))]
            for turn, answer in enumerate(self.turns, start=1)
        ]
        return [
            [JournaledCall.model_validate_json(result) for result in of_turn if result is not None]
            for of_turn in results
        ]

    def before_tools_of(self, turn: int) -> Journal:
        """Return the journal as it was when the model had spoken in `turn` and none of its calls had ended."""
        prefix = result_field(f"tool_call.{turn}.")
        fields = self.execution.fields
        return Journal(ExecutionRecord({name: text for name, text in fields.items() if not name.startswith(prefix)}))

    @cached_property
    def below(self) -> Below:
        """What the agents that it has asked have used, with all below them."""
        total = Below()
        for record in (record for records in self._calls for record in records):
            if record.below is not None:
                total = total.plus(record.below)
        return total

    @property
    def tool_calls(self) -> int:
        """How many tool calls were asked for, here and below."""
        return sum(len(answer.tool_calls) for answer in self.turns) + self.below.tool_calls

    @property
    def repairs(self) -> int:
        """How many answers so far did not fit the response format: only such a one has a turn after it and no calls."""
        return sum(not answer.tool_calls for answer in self.turns)

    @cached_property
    def usage(self) -> Usage:
        """The tokens and the money of all turns, of what was summed up between them, and of the agents that were asked."""
        total = self.below.usage
        for usage in (*(answer.usage for answer in self.turns), *(summary.usage for summary in self._summed_up)):
            total = total.plus(usage)
        return total

    @cached_property
    def wasted(self) -> Usage:
        """What attempts have used that came to nothing, below included; of the money, what is known."""
        total = self.below.wasted.known
        for usage in (*(answer.wasted for answer in self.turns), *(summary.wasted for summary in self._summed_up)):
            total = total.plus(usage.known)
        return total

    @cached_property
    def spent(self) -> Usage:
        """What all of it has used, attempts that failed included; of the money, what is known."""
        total = self.wasted.plus(self.below.usage.known)
        for usage in (*(answer.usage for answer in self.turns), *(summary.usage for summary in self._summed_up)):
            total = total.plus(usage.known)
        return total
