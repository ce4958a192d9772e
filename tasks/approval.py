"""The approval of a tool call by a person: asked for once, awaited without a slot, heard when it has come.

Owns what becomes of a call that needs one. Does not know who resolves it (agent_exec/approval.py), nor how a tool is run.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import JsonValue

from agent_exec.contract.approval import Approval, word_for
from agent_exec.contract.event import EventName, ToolApprovalRequestedData
from agent_exec.contract.tool import ToolCall, ToolError
from agent_exec.ledger.ledger import Event
from tasks.next_step import Park
from tasks.step import Done, Step

#: The note of a step that was parked for its approval. An attempt that finds it, and no word, came when the time was up.
ASKED = "approval asked"


def held_back(step: Step, call: ToolCall, arguments: JsonValue) -> Done | ToolError | None:
    """Return why a call that needs approval does not run now: it has to wait, or the error for the model; None: it may."""
    if step.claim.word is not None:
        approval = Approval.model_validate_json(step.claim.word)
        return None if approval.approved else _rejected(call, approval)
    if step.claim.note == ASKED:
        return ToolError(code="approval_expired", message=f"Nobody has approved the call of '{call.name}' in time.")
    waits_s = _waits_s(step)
    requested = ToolApprovalRequestedData(
        tool_call_id=call.id,
        name=call.name,
        arguments=arguments,
        turn=step.number,
        expires_at=datetime.fromtimestamp(step.now_ms() / 1000 + waits_s, tz=UTC),
    )
    event = Event(EventName.TOOL_APPROVAL_REQUESTED, requested.model_dump_json())
    return Done("null", [event], Park(waits_s, awaits=word_for(call.id), note=ASKED))


def _rejected(call: ToolCall, approval: Approval) -> ToolError:
    why = f": {approval.reason}" if approval.reason else "."
    return ToolError(code="approval_rejected", message=f"A person has rejected the call of '{call.name}'{why}")


def _waits_s(step: Step) -> float:
    """Return how long a call may wait for its approval: its execution ends at its deadline, whatever it waits for."""
    timeout_s, deadline_ms = step.resources.settings.approval_timeout_s, step.claim.execution.deadline_ms
    return timeout_s if deadline_ms is None else max(0.0, min(timeout_s, (deadline_ms - step.now_ms()) / 1000))
