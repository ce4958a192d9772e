"""Schedules over HTTP: make, list, show, pause, resume, delete.

Owns their parameters and answers. Does not know when one is due, nor who begins it.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from agent_exec import submission
from agent_exec.contract.schedule import ScheduleList, ScheduleRequest
from agent_exec.schedules import schedule
from agent_exec.schedules.schedule import ScheduleRef
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


class ScheduleParameters(Repeatable):
    """How a schedule is made again safely."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            pattern=IDEMPOTENCY_KEY_PATTERN,
            description="the same key and body name the same schedule, until it is deleted; another body is refused",
        ),
    ] = None


class ScheduleListParameters(Parameters):
    """Which of a tenant's schedules."""

    cursor: Annotated[str | None, Field(max_length=200, description="`next_cursor` of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


async def create_schedule(asked: Asked[ScheduleParameters, ScheduleRequest]) -> Response:
    """Make a schedule: its request becomes an execution at each time of its cron line."""
    shim, tenant_id = asked.shim, asked.tenant_id
    submission.admit(
        asked.body.request,
        tenant_id=tenant_id,
        open_retention_s=shim.settings.open_retention_s,
        callback_door=shim.callbacks,
    )
    ref = ScheduleRef(
        tenant_id,
        submission.id_of_key("schedule", tenant_id=tenant_id, idempotency_key=asked.parameters.idempotency_key),
    )
    creating = schedule.create(ref, asked.body, now_ms=int(time.time() * 1000), at_most=shim.settings.max_schedules)
    await shim.run(creating)
    standing = await shim.run(schedule.look(ref))
    return json_response(standing.view(), status=201, headers={"Location": f"/v1/schedules/{ref.schedule_id}"})


async def list_schedules(asked: Asked[ScheduleListParameters, None]) -> Response:
    """List schedules, newest first. A page may be short of `limit` and not be the last."""
    of = f"{asked.tenant_id} schedules"
    place = Place.parse(asked.parameters.cursor, of=of)
    page = await asked.shim.run(
        schedule.page(asked.tenant_id, before_ms=place.before_ms, skip=place.skip, limit=asked.parameters.limit)
    )
    for one in page.listed:
        place = place.behind(one.created_ms)
    return json_response(
        ScheduleList(
            schedules=[one.schedule.view() for one in page.listed],
            next_cursor=None if page.is_last else place.text(of=of),
        )
    )


async def show_schedule(asked: Asked[Conditional, None]) -> Response:
    """Show a schedule: what it asks, when it is next due, and what it has begun last."""
    standing = await asked.shim.run(schedule.look(_ref(asked)))
    return tagged_response(standing.view(), known=asked.parameters.if_none_match)


async def pause_schedule(asked: Asked[NoParameters, None]) -> Response:
    """Let no further time of a schedule begin anything; what runs goes on."""
    ref = _ref(asked)
    await asked.shim.run(schedule.pause(ref))
    return json_response((await asked.shim.run(schedule.look(ref))).view())


async def resume_schedule(asked: Asked[NoParameters, None]) -> Response:
    """Let a schedule go on, from the first of its times after now; those that passed are not made up for."""
    ref = _ref(asked)
    await asked.shim.run(schedule.resume(await asked.shim.run(schedule.look(ref))))
    return json_response((await asked.shim.run(schedule.look(ref))).view())


async def delete_schedule(asked: Asked[NoParameters, None]) -> Response:
    """Forget a schedule; what it has begun goes on."""
    await asked.shim.run(schedule.delete(_ref(asked)))
    return Response(status_code=204)


def _ref(asked: Asked[Any, None]) -> ScheduleRef:
    return ScheduleRef(asked.tenant_id, str(asked.connection.path_params["schedule_id"]))
