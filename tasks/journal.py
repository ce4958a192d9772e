"""What the steps of an execution have journaled so far, read. Pure.

Owns the shape of each step's result and the names of steps. Does not know Redis, nor what a step does with it.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

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
    return ["tenant", "agent", "wish", "cancel_ms", "deadline_ms", *journaled]


class Snapshot(ContractModel):
    """What the prompt step fixes for the whole execution: no later change elsewhere touches it."""

    config: AgentConfig
    tenant: Tenant
    system_prompt: str = ""
    tools: list[ToolDefinition] = Field(default_factory=list)


class JournaledCall(ToolCallRecord):
    """A finished tool call: the record that everybody sees, and what the model alone is shown in place of its result."""

    unredacted: Json = None

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
        stored = [
            self.execution.result(tool_call_step(turn, index)) for index in range(len(self.turns[turn - 1].tool_calls))
        ]
        return [JournaledCall.model_validate_json(one) for one in stored if one is not None]

    @cached_property
    def all_tool_records(self) -> list[ToolCallRecord]:
        """All finished tool calls."""
        return [record for turn in range(1, len(self.turns) + 1) for record in self.tool_records(turn)]

    @property
    def repairs(self) -> int:
        """How many answers so far did not fit the response format: only such a one has a turn after it and no calls."""
        return sum(not answer.tool_calls for answer in self.turns)

    @cached_property
    def usage(self) -> Usage:
        """The tokens and the money of all turns, and of what was summed up between them."""
        total = Usage()
        for usage in (*(answer.usage for answer in self.turns), *(summary.usage for summary in self._summed_up)):
            total = total.plus(usage)
        return total

    @cached_property
    def spent(self) -> Usage:
        """What all of it has used, attempts that failed included; of the money, what is known."""
        total = Usage()
        answers = [usage for answer in self.turns for usage in (answer.usage, answer.wasted)]
        for usage in (*answers, *(usage for one in self._summed_up for usage in (one.usage, one.wasted))):
            total = total.plus(usage.model_copy(update={"cost_usd": usage.cost_usd or 0.0}))
        return total
