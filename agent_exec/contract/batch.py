"""A batch: many requests under one id, as a caller sends them, watches them, and gets their results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agent_exec.contract.execution import ErrorDetail, ExecutionRequest, FinalResponse, Timestamp
from agent_exec.contract.message import CallbackUrl
from agent_exec.contract.model import ContractModel, ExecutionId, TenantId

#: More than this are sent as several batches.
MAX_ITEMS = 10_000

BatchId = ExecutionId
BatchStatus = Literal["pending", "processing", "completed", "cancelled"]


class BatchRequest(ContractModel):
    """The body of `POST /v1/batches`. Each request becomes an execution; one that names no priority gets the lowest."""

    requests: Annotated[list[ExecutionRequest], Field(min_length=1, max_length=MAX_ITEMS)]
    callback_url: Annotated[
        CallbackUrl | None,
        Field(description="is told by a signed POST when the batch is over; a request may name its own"),
    ] = None


class BatchView(ContractModel):
    """The state of a batch. It is `completed` when all of its executions have ended, however they have."""

    batch_id: BatchId
    tenant_id: TenantId
    status: BatchStatus
    count: Annotated[int, Field(description="its requests")]
    submitted: Annotated[int, Field(description="how many of them are executions by now")]
    completed: Annotated[int, Field(description="executions that ended so")]
    failed: Annotated[int, Field(description="executions that ended so, those that were cancelled among them")]
    cancelled: Annotated[int, Field(description="requests that never became executions, for the batch was cancelled")]
    cancel_requested: bool = False
    created_at: Timestamp
    finished_at: Timestamp | None = None


class BatchEnded(ContractModel):
    """The body of a batch's callback, the same bytes at every try. Its id is the batch's."""

    type: Literal["agent_execution.batch.completed"]
    timestamp: Annotated[Timestamp, Field(description="when the last of its executions ended")]
    data: BatchView


class BatchList(ContractModel):
    """Batches, newest first."""

    batches: list[BatchView]
    next_cursor: Annotated[str | None, Field(description="null: these are the last")] = None


class BatchResult(ContractModel):
    """What one request of a batch came to: a line of its results."""

    index: Annotated[int, Field(ge=0, description="the place of the request in the batch, from 0")]
    execution_id: ExecutionId
    status: Literal["completed", "failed"]
    response: Annotated[FinalResponse | None, Field(description="null where the request never became an execution")] = (
        None
    )
    error: Annotated[ErrorDetail | None, Field(description="why there is no response")] = None
