"""Resolving the approval of a tool call: the same for every door.

Owns what a decision comes to. Does not know which door it is and who may use it, nor what the call does then
(tasks/approval.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

from agent_exec.contract.approval import Approval, word_for
from agent_exec.errors import AlreadyResolved, NotAwaitingApproval
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import AlreadyOver, NotWaiting, Sent
from agent_exec.script import Call


@dataclass(frozen=True, slots=True)
class Resolved:
    """The decision that stands. `hint` is to be pushed: it has the call go on at once, and not a second later."""

    approval: Approval
    hint: Hint | None


def resolve(tenant_id: str, execution_id: str, tool_call_id: str, approval: Approval) -> Call[Resolved]:
    """Approve a tool call that waits for it, or reject it; durable once answered, and the same once more.

    Raises:
        NotFound: (when run) this tenant has no such execution.
        NotAwaitingApproval: (when run) the call does not wait for approval: it never did, its time has passed, or its
            execution has ended.
        AlreadyResolved: (when run) it was resolved before, the other way.
    """
    sending = ledger.send_word(tenant_id, execution_id, name=word_for(tool_call_id), word=approval.model_dump_json())

    def parse(reply: Any) -> Resolved:
        answer = sending.parse(reply)
        match answer:
            case Sent(word, hint):
                standing = Approval.model_validate_json(word)
                if standing.approved != approval.approved:
                    said = "approved" if standing.approved else "rejected"
                    raise AlreadyResolved(f"The tool call was {said} before, and the first decision stands.")
                return Resolved(standing, hint)
            case NotWaiting():
                raise NotAwaitingApproval(
                    f"Execution '{execution_id}': no such tool call waits for approval; it never did, or no longer does."
                )
            case AlreadyOver(status):
                raise NotAwaitingApproval(
                    f"Execution '{execution_id}': has ended as {status}; none of its tool calls waits for approval."
                )
            case _:
                assert_never(answer)

    return Call(sending.script, sending.keys, sending.args, parse)
