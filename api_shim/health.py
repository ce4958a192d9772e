"""Whether this process lives, whether it can do its work, and what it has counted.

Owns the answers for supervisors and scrapers. Does not know tenants: nothing here is anybody's.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from agent_exec import server
from agent_exec.callbacks import callbacks
from agent_exec.contract.model import ContractModel
from agent_exec.errors import StorageError
from agent_exec.notifier_state import notifier_state
from api_shim.callback_metrics import CallbackMetrics
from api_shim.notifier_metrics import NotifierMetrics
from api_shim.operation import Asked, json_response


class Health(ContractModel):
    """All is well."""

    status: Literal["live", "ready"]


async def live(asked: Asked[Any, None]) -> Response:
    """Say that this process answers."""
    return json_response(Health(status="live"))


async def ready(asked: Asked[Any, None]) -> Response:
    """Say whether work can be accepted: Redis has to answer, and to take writes."""
    await asked.shim.run(server.writable())
    return json_response(Health(status="ready"))


async def metrics(asked: Asked[Any, None]) -> Response:
    """Give this process's counters in Prometheus's text format, and where Redis answers how notifier and callbacks stand."""
    text = generate_latest(asked.shim.counters.registry)
    with suppress(StorageError):
        text += generate_latest(NotifierMetrics(await asked.shim.run(notifier_state())))
        text += generate_latest(CallbackMetrics(await asked.shim.run(callbacks.backlog())))
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
