"""The approval of a tool call over HTTP: a person of the tenant approves or rejects it.

Owns who may. Does not know what a decision comes to, nor how a request is checked.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from starlette.responses import Response

from agent_exec import approval
from agent_exec.contract.approval import Approval, ApprovalAnswer
from agent_exec.errors import Forbidden, StorageError
from api_shim.operation import Asked, NoParameters, json_response


async def resolve(asked: Asked[NoParameters, Approval]) -> Response:
    """Approve a tool call that waits for it, or reject it; durable once answered. The first decision stands."""
    tool_call_id = str(asked.connection.path_params["tool_call_id"])
    return json_response(await decide(asked, tool_call_id, asked.body))


async def decide(asked: Asked[Any, Any], tool_call_id: str, decision: Approval) -> ApprovalAnswer:
    """Resolve, if the caller may.

    Raises:
        Forbidden: a neighbour's key: a service is nobody who could agree to anything.
        NotFound, NotAwaitingApproval, AlreadyResolved: as `agent_exec.approval.resolve`.
    """
    if asked.caller.role == "service":
        raise Forbidden("A person decides: this takes a key with the role caller or operator.")
    resolved = await asked.shim.run(approval.resolve(asked.tenant_id, asked.execution_id, tool_call_id, decision))
    if resolved.hint is not None:
        with suppress(StorageError):  # it is stored: whoever looks for lost hints sends this one
            await asked.shim.run(resolved.hint.push())
    return ApprovalAnswer(
        execution_id=asked.execution_id,
        tool_call_id=tool_call_id,
        approved=resolved.approval.approved,
        reason=resolved.approval.reason,
    )
