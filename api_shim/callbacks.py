"""A tenant's callbacks over HTTP: those that wait or were given up, and having one sent again.

Owns their parameters and answers. Does not know how one is sent.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import CallbackRef, ListedState
from agent_exec.contract.callback import CallbackList
from api_shim.operation import Asked, NoParameters, Parameters, json_response
from api_shim.place import Place


class CallbackListParameters(Parameters):
    """Which of a tenant's callbacks."""

    state: ListedState = "dead"
    cursor: Annotated[str | None, Field(max_length=200, description="`next_cursor` of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


async def list_callbacks(asked: Asked[CallbackListParameters, None]) -> Response:
    """List callbacks that were given up, or wait, or are on their way; the latest first."""
    wanted, tenant_id = asked.parameters, asked.tenant_id
    of = f"{tenant_id} {wanted.state}"
    place = Place.parse(wanted.cursor, of=of)
    listed = await asked.shim.run(
        callbacks.page(tenant_id, wanted.state, before_ms=place.before_ms, skip=place.skip, limit=wanted.limit)
    )
    for one in listed:
        place = place.behind(one.at_ms)
    return json_response(
        CallbackList(
            callbacks=[one.view for one in listed if one.view is not None],
            next_cursor=place.text(of=of) if len(listed) == wanted.limit else None,
        )
    )


async def show_callback(asked: Asked[NoParameters, None]) -> Response:
    """Show where a callback stands."""
    view = await asked.shim.run(callbacks.look(_ref(asked)))
    return json_response(view)


async def redeliver_callback(asked: Asked[NoParameters, None]) -> Response:
    """Have a callback sent now: one that was given up with all its tries anew, one that waits ahead of its time."""
    ref = _ref(asked)
    await asked.shim.run(callbacks.redeliver(ref))
    view = await asked.shim.run(callbacks.look(ref))
    return json_response(view, status=202)


def _ref(asked: Asked[NoParameters, None]) -> CallbackRef:
    return CallbackRef(asked.tenant_id, str(asked.connection.path_params["callback_id"]))
