"""Executions over HTTP: submit, show, list, cancel.

Owns their parameters and answers. Does not know how a stream is followed, nor how a request is checked.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Annotated, Any, assert_never

from pydantic import Field
from starlette.responses import Response

from agent_exec import keys, submission
from agent_exec.contract.command import CancelStatus
from agent_exec.contract.execution import ExecutionRequest, ExecutionView
from agent_exec.contract.message import Status
from agent_exec.contract.model import AgentId, ContractModel, ExecutionId
from agent_exec.errors import NotFound, StorageError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, AlreadyOver, CancelRequested, Listed
from agent_exec.ledger.record import ExecutionRecord
from api_shim.operation import (
    IDEMPOTENCY_KEY_PATTERN,
    Asked,
    Conditional,
    NoParameters,
    Parameters,
    Repeatable,
    json_response,
    tagged_response,
)
from api_shim.place import Place
from api_shim.shim import Shim

#: Records are read so many at once: each holds its whole request and response.
LOOK_AT_ONCE = 20
#: A filtered list reads no more records than this for one answer; its cursor goes on from there.
MAX_LOOKS = 500

_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])', re.IGNORECASE)


class SubmitParameters(Repeatable):
    """How a submission is repeated safely, and waited for."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            pattern=IDEMPOTENCY_KEY_PATTERN,
            description="the same key and body within 24 h name the same execution; another body is refused",
        ),
    ] = None
    prefer: Annotated[
        str | None,
        Field(alias="Prefer", description="`wait=N`: answer with the final response if it is ready within N seconds"),
    ] = None

    def wait_s(self, *, longest_s: float) -> float:
        """Return how long the caller prefers to wait; a preference that is not understood is none (RFC 7240)."""
        asked = _WAIT.search(self.prefer or "")
        return min(float(asked[1]), longest_s) if asked else 0.0


class Accepted(ContractModel):
    """An execution is stored, and will be run."""

    execution_id: ExecutionId
    status: Status
    replayed: Annotated[bool, Field(description="whether this Idempotency-Key had been accepted before")]
    links: Annotated[dict[str, str], Field(description="paths: self, events, cancel")]


class ListParameters(Parameters):
    """Which of a tenant's executions."""

    status: Status | None = None
    agent_id: AgentId | None = None
    cursor: Annotated[str | None, Field(max_length=200, description="`next_cursor` of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class ExecutionList(ContractModel):
    """Executions, newest first, without their final responses. A page may be short of `limit` and not be the last."""

    executions: list[ExecutionView]
    next_cursor: Annotated[str | None, Field(description="null: these are the last")] = None


class CancelAnswer(ContractModel):
    """`cancel_requested` is durable; otherwise the execution had ended before, with that status."""

    execution_id: ExecutionId
    status: CancelStatus


async def submit(asked: Asked[SubmitParameters, ExecutionRequest]) -> Response:
    """Store an execution; answered once it is stored."""
    shim, tenant_id = asked.shim, asked.tenant_id
    acceptance = await accept(shim, tenant_id, asked.body, idempotency_key=asked.parameters.idempotency_key)
    execution_id = acceptance.execution_id
    path = path_of(execution_id)
    headers = {"Location": path}
    status: Status = "pending"
    wait_s = asked.parameters.wait_s(longest_s=shim.settings.api_max_wait_s)
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        await _wait_for_end(shim, tenant_id, execution_id, wait_s=wait_s)
    if wait_s or acceptance.replayed:
        with suppress(StorageError, NotFound):  # it is stored; a status as of acceptance will do
            record = await shim.run(ledger.look(tenant_id, execution_id))
            if wait_s and (response := record.response) is not None:
                return json_response(response, headers=headers)
            status = record.status
    accepted = Accepted(
        execution_id=execution_id,
        status=status,
        replayed=acceptance.replayed,
        links=links(execution_id),
    )
    return json_response(accepted, status=202, headers=headers)


async def accept(shim: Shim, tenant_id: str, request: ExecutionRequest, *, idempotency_key: str | None) -> Acceptance:
    """Store an execution and send its first hint.

    Raises:
        QueueFull, Conflict, CallbackUrlInvalid, CallbacksNotConfigured, StorageError: it is not stored.
    """
    message = submission.message_of(request, tenant_id=tenant_id)
    acceptance = await shim.run(
        submission.store(
            message,
            open_retention_s=shim.settings.open_retention_s,
            max_queued=shim.settings.max_queued,
            idempotency_key=idempotency_key,
            callback_door=shim.callbacks,
        )
    )
    if acceptance.begins:
        with suppress(StorageError):  # it is stored: whoever looks for lost hints sends this one
            await shim.run(submission.first_hint(message, acceptance).push())
    return acceptance


def path_of(execution_id: str) -> str:
    """Return where an execution is shown."""
    return f"/v1/executions/{execution_id}"


def links(execution_id: str) -> dict[str, str]:
    """Return where to go on with an execution."""
    path = path_of(execution_id)
    return {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}


async def show(asked: Asked[Conditional, None]) -> Response:
    """Show an execution: its status, and the final response once there is one."""
    record = await asked.shim.run(ledger.look(asked.tenant_id, asked.execution_id))
    return tagged_response(record.view(asked.execution_id), known=asked.parameters.if_none_match)


async def list_newest(asked: Asked[ListParameters, None]) -> Response:
    """List executions, newest first."""
    wanted = asked.parameters
    place = Place.parse(wanted.cursor, of=asked.tenant_id)
    is_filtered = wanted.status is not None or wanted.agent_id is not None
    at_once = LOOK_AT_ONCE if is_filtered else min(LOOK_AT_ONCE, wanted.limit)
    found: list[ExecutionView] = []
    looks = 0
    while True:
        listed = await asked.shim.run(
            ledger.list_executions(asked.tenant_id, before_ms=place.before_ms, skip=place.skip, limit=at_once)
        )
        records = await asyncio.gather(*[_record(asked, one) for one in listed])
        for one, record in zip(listed, records, strict=True):
            place = place.behind(one.created_ms)
            if record is not None and _fits(record, wanted):
                found.append(_without_response(record).view(one.execution_id))
            if len(found) == wanted.limit:
                break
        looks += len(listed)
        if len(found) == wanted.limit or looks >= MAX_LOOKS:
            return json_response(ExecutionList(executions=found, next_cursor=place.text(of=asked.tenant_id)))
        if len(listed) < at_once:
            return json_response(ExecutionList(executions=found))


async def cancel(asked: Asked[NoParameters, None]) -> Response:
    """Ask for the end of an execution; durable once answered."""
    return json_response(await ask_for_end(asked.shim, asked.tenant_id, asked.execution_id), status=202)


async def ask_for_end(shim: Shim, tenant_id: str, execution_id: str) -> CancelAnswer:
    """Cancel; the workers find it where it is stored.

    Raises:
        NotFound: this tenant has no such execution.
    """
    answer = await shim.run(ledger.cancel(tenant_id, execution_id))
    match answer:
        case AlreadyOver(status):
            return CancelAnswer(execution_id=execution_id, status=status)
        case CancelRequested():
            return CancelAnswer(execution_id=execution_id, status="cancel_requested")
        case _:
            assert_never(answer)


async def _wait_for_end(shim: Shim, tenant_id: str, execution_id: str, *, wait_s: float) -> None:
    """Wait until the final response is there, `wait_s` have passed, or this process ends."""
    give_up_at_s = time.monotonic() + wait_s
    with shim.live.watch(keys.responses(tenant_id, execution_id), after=0) as watch:
        while not shim.live.draining and (left_s := give_up_at_s - time.monotonic()) > 0:
            if await watch.beyond(0, timeout_s=left_s):
                return


async def _record(asked: Asked[Any, Any], listed: Listed) -> ExecutionRecord | None:
    """Read the record of a listed execution; None where it has expired since."""
    try:
        return await asked.shim.run(ledger.look(asked.tenant_id, listed.execution_id))
    except NotFound:
        return None


def _fits(record: ExecutionRecord, wanted: ListParameters) -> bool:
    return wanted.status in (None, record.status) and wanted.agent_id in (None, record.agent_id)


def _without_response(record: ExecutionRecord) -> ExecutionRecord:
    return ExecutionRecord({name: text for name, text in record.fields.items() if name != "response"})
