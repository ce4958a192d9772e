"""A schedule: a request that becomes an execution again and again, at the times of a cron line."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from agent_exec.contract.execution import ExecutionRequest, Timestamp
from agent_exec.contract.model import ContractModel, ExecutionId, TenantId
from agent_exec.schedules import cron

ScheduleId = ExecutionId


class ScheduleRequest(ContractModel):
    """The body of `POST /v1/schedules`."""

    cron: Annotated[
        str,
        AfterValidator(cron.check_line),
        Field(max_length=200, description="minute, hour, day of month, month, day of week", examples=["0 7 * * 1-5"]),
    ]
    timezone: Annotated[str, AfterValidator(cron.check_zone), Field(max_length=100, examples=["Europe/Berlin"])] = "UTC"
    request: ExecutionRequest
    overlap: Annotated[
        bool, Field(description="whether to begin although the execution of the time before has not ended")
    ] = True

    @model_validator(mode="after")
    def _says_when_once(self) -> Self:
        if self.request.run_at is not None:
            raise ValueError("the request of a schedule names no run_at: the schedule says when")
        return self


class ScheduleView(ContractModel):
    """The state of a schedule."""

    schedule_id: ScheduleId
    tenant_id: TenantId
    cron: str
    timezone: str
    request: ExecutionRequest
    overlap: bool
    paused: bool
    next_at: Annotated[Timestamp | None, Field(description="when it is next due; null while it is paused")]
    last_at: Annotated[Timestamp | None, Field(description="the time it was last due and begun")] = None
    last_execution_id: ExecutionId | None = None
    created_at: Timestamp


class ScheduleList(ContractModel):
    """Schedules, newest first."""

    schedules: list[ScheduleView]
    next_cursor: Annotated[str | None, Field(description="null: these are the last")] = None
