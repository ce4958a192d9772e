"""An execution as the ledger holds it, read.

Owns the meaning of the fields that the Lua scripts write (`lua/_ledger.lua` lists them). Does not write any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from agent_exec.contract.approval import tool_call_of
from agent_exec.contract.execution import ExecutionView, FinalResponse
from agent_exec.contract.message import Message, Status
from agent_exec.ledger.parent import Parent, child_of


@dataclass(frozen=True)
class ExecutionRecord:
    """One execution; `fields` is its hash, or what a claim brought of it, decoded to text."""

    fields: Mapping[str, str]

    @property
    def tenant_id(self) -> str:
        """Whose it is."""
        return self.fields["tenant"]

    @property
    def agent_id(self) -> str:
        """The agent that it runs."""
        return self.fields["agent"]

    @property
    def status(self) -> Status:
        """One of the contract's four."""
        return self.fields["status"]  # type: ignore[return-value]  # the scripts write no other

    @property
    def priority(self) -> int:
        """The effective priority, 0–9."""
        return int(self.fields["priority"])

    @property
    def wish(self) -> int:
        """The priority that the caller wishes for, 0–9: the message's, unless it was changed since."""
        return int(self.fields["wish"])

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked for its end."""
        return "cancel_ms" in self.fields

    @property
    def batched(self) -> bool:
        """Whether it is an item of a batch."""
        return "batch" in self.fields

    @property
    def linked(self) -> bool:
        """Whether something follows its end in the canvas of a Celery app."""
        return "linked" in self.fields

    @property
    def deadline_ms(self) -> int | None:
        """When it must have ended, by Redis's clock."""
        return int(self.fields["deadline_ms"]) if "deadline_ms" in self.fields else None

    @property
    def created_at(self) -> datetime:
        """When it was accepted."""
        return at(self.fields["created_ms"])

    @property
    def runs_at(self) -> datetime | None:
        """When it is to begin, or was, where that was not at once."""
        return at(self.fields["runs_ms"]) if "runs_ms" in self.fields else None

    @property
    def started_at(self) -> datetime | None:
        """When its first step was claimed."""
        return at(self.fields["started_ms"]) if "started_ms" in self.fields else None

    @property
    def finished_at(self) -> datetime | None:
        """When it ended."""
        return at(self.fields["finished_ms"]) if "finished_ms" in self.fields else None

    @cached_property
    def message(self) -> Message:
        """The standard message as it was accepted."""
        return Message.model_validate_json(self.fields["message"])

    @property
    def parent(self) -> Parent | None:
        """Who asked for it, where that is an execution."""
        return Parent.read(self.fields["parent"]) if "parent" in self.fields else None

    @property
    def response(self) -> FinalResponse | None:
        """The final response, once there is one."""
        stored = self.fields.get("response")
        return None if stored is None else FinalResponse.model_validate_json(stored)

    def result(self, step: str) -> str | None:
        """Return the JSON that `step` journaled, or None."""
        return self.fields.get(result_field(step))

    def note(self, step: str) -> str:
        """Return what a step said of itself when it last waited, or by a mark since."""
        note: str = json.loads(self.steps[step]).get("note", "")
        return note

    @property
    def steps(self) -> dict[str, str]:
        """Each step's name and its state as JSON."""
        return {name[5:]: packed for name, packed in self.fields.items() if name.startswith("step:")}

    @property
    def awaiting_approval(self) -> list[str]:
        """The tool calls that wait for a person's approval."""
        return [call for word in self._awaited if (call := tool_call_of(word))]

    @property
    def awaiting_executions(self) -> list[str]:
        """The children for whose end a tool call waits."""
        return [child for word in self._awaited if (child := child_of(word))]

    @property
    def _awaited(self) -> list[str]:
        """The names of the words that steps wait for, and that have not come."""
        if self.finished_at is not None:
            return []
        steps = map(json.loads, self.steps.values())
        awaited = [step.get("awaits", "") for step in steps if step["state"] == "waiting"]
        return [word for word in awaited if word and f"word:{word}" not in self.fields]

    def view(self, execution_id: str) -> ExecutionView:
        """Return what a caller sees of it."""
        return ExecutionView(
            execution_id=execution_id,
            tenant_id=self.tenant_id,
            agent_id=self.agent_id,
            status=self.status,
            priority=self.priority,
            created_at=self.created_at,
            runs_at=self.runs_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            cancel_requested=self.cancel_requested,
            parent_execution_id=self.parent.execution_id if self.parent is not None else None,
            awaiting_approval=self.awaiting_approval,
            awaiting_executions=self.awaiting_executions,
            last_sequence=int(self.fields["sequence"]),
            response=self.response,
        )


def result_field(step: str) -> str:
    """Return the field in which a step's result is journaled."""
    return f"result:{step}"


def at(milliseconds: str | int) -> datetime:
    """Return a moment of Redis's clock as UTC."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, tz=UTC)
