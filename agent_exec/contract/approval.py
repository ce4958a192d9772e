"""What a person says to a tool call that waits for approval.

Owns the decision, its bounds, and the name under which it reaches the step that waits. Does not know who may decide.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agent_exec.contract.model import ContractModel, ExecutionId, OpaqueId

#: A paragraph; the model reads it.
MAX_REASON_CHARS = 2_000

Reason = Annotated[str, Field(max_length=MAX_REASON_CHARS, description="of a rejection; the model reads it")]

#: Words of other kinds, such as the end of a child, are no approvals, whatever a caller names.
_WORD = "approval:"


class Approval(ContractModel):
    """Whether a tool call may run. The first one stands."""

    approved: bool
    reason: Reason | None = None


class ApprovalAnswer(ContractModel):
    """The decision that stands."""

    execution_id: ExecutionId
    tool_call_id: OpaqueId
    approved: bool
    reason: str | None


def word_for(tool_call_id: str) -> str:
    """Return the name of the word that the step of this tool call awaits."""
    return f"{_WORD}{tool_call_id}"


def tool_call_of(word: str) -> str | None:
    """Return the tool call of an awaited word; None where it is no approval that is awaited."""
    return word.removeprefix(_WORD) if word.startswith(_WORD) else None
