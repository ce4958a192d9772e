"""A callback: what its receiver gets, and what its tenant sees of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agent_exec.contract.execution import FinalResponse, Timestamp
from agent_exec.contract.model import ContractModel, TenantId

CallbackState = Literal["waiting", "sending", "delivered", "dead"]
#: Why a try failed: an answer that is no 2xx, none within the time, no connection, no TLS that could be trusted, a
#: destination that is not allowed (any more), no secret to sign with, or a fault of this service.
CallbackFault = Literal["answered", "timed_out", "unreachable", "untrusted", "forbidden", "unsigned", "broken"]
#: It is the id of the execution that it tells of.
CallbackId = Annotated[str, Field(description="the header `webhook-id` of every try: the id of what it tells of")]


class ExecutionEnded(ContractModel):
    """The body of a callback, the same bytes at every try."""

    type: Literal["agent_execution.completed", "agent_execution.failed"]
    timestamp: Annotated[Timestamp, Field(description="when the execution ended")]
    data: FinalResponse


class CallbackView(ContractModel):
    """Where a callback stands.

    `waiting`: it is sent at `due_at`; `sending`: on its way; `delivered`: the receiver answered 2xx; `dead`: it is not sent
    any more unless somebody asks for it.
    """

    callback_id: CallbackId
    tenant_id: TenantId
    url: str
    state: CallbackState
    attempts: Annotated[int, Field(ge=0, description="tries that came to an outcome, since it was last asked for")]
    created_at: Timestamp
    due_at: Timestamp | None = None
    last_attempt_at: Timestamp | None = None
    last_status: Annotated[int | None, Field(description="the HTTP status of the last answer")] = None
    last_fault: CallbackFault | None = None


class CallbackList(ContractModel):
    """A tenant's callbacks in one state, the latest first."""

    callbacks: list[CallbackView]
    next_cursor: Annotated[str | None, Field(description="null: these are the last")] = None
