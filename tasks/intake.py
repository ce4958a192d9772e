"""Taking in a standard message over Celery: validate, store, send the first hint. Only then is it acknowledged.

Owns what becomes of a message that cannot be taken in: a dead letter with its reason and, where it names an execution id, an
error as its Celery result. Does not know how an execution runs.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import structlog
from celery import Task
from celery.worker.request import Request

from agent_exec import submission
from agent_exec.broker import fair_queue
from agent_exec.contract.model import EXECUTION_ID_PATTERN
from agent_exec.errors import (
    AgentExecError,
    CallbacksNotConfigured,
    CallbackUrlInvalid,
    Conflict,
    InvalidMessage,
    QueueFull,
)
from agent_exec.ledger import ledger
from tasks.links import take_off
from tasks.resources import Resources
from tasks.response import celery_refusal

log = structlog.get_logger(__name__)

#: What is shown instead of a standard message.
SHOWN = "{'message': '…'}"


class DiscreetRequest(Request):  # type: ignore[misc]  # celery has no types
    """Celery's notion of a message in the worker, for one that holds a prompt: its arguments show nowhere.

    A plain Celery app writes the beginning of its arguments into the headers, and the worker would hand that on to events,
    logs, Flower and `inspect active`.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        """Take the message, and blacken what is shown of it."""
        super().__init__(message, **options)
        self._argsrepr = self._request_dict["argsrepr"] = "()"
        self._kwargsrepr = self._request_dict["kwargsrepr"] = SHOWN

    def info(self, safe: bool = True) -> dict[str, Any]:
        """Return what `inspect` shows: never the arguments themselves."""
        shown: dict[str, Any] = super().info(safe=True)
        return shown


async def take_in(task: Task, raw: Any) -> None:
    """Store the execution that `raw`, the decoded message, asks for, and with it what follows it in its sender's canvas."""
    resources: Resources = task.resources
    taken, links = take_off(task.request), ""
    try:
        links = resources.links.read(task.request, taken, execution_id=_named(raw))
        message = submission.message_from(raw)
        accepted = await resources.store.insist(
            submission.store(
                message,
                open_retention_s=resources.settings.open_retention_s,
                max_queued=resources.settings.max_queued,
                callback_door=resources.callbacks,
                links=links,
            )
        )
    except (InvalidMessage, CallbackUrlInvalid, CallbacksNotConfigured, Conflict, QueueFull) as error:
        await _refuse(task, raw, error, links=links)
        return
    if accepted.begins:
        await resources.store.insist(submission.first_hint(message, accepted).push())
    log.info("execution accepted", execution_id=accepted.execution_id, tenant_id=message.tenant_id)


async def turn_away(task: Task, *, reason: str) -> None:
    """Refuse a message that holds nothing which could be taken in."""
    resources: Resources = task.resources
    taken, links = take_off(task.request), ""
    with contextlib.suppress(InvalidMessage):
        links = resources.links.read(task.request, taken, execution_id=None)
    await _refuse(task, None, InvalidMessage(reason), links=links)


async def _refuse(task: Task, raw: Any, error: AgentExecError, *, links: str) -> None:
    resources: Resources = task.resources
    log.warning("message refused", code=error.code, reason=str(error))
    delivery = task.request.properties.get("delivery_tag", "")
    told = [named for named in (_named(raw),) if named is not None]
    if links:
        await resources.links.refuse(links, delivery.rpartition("#")[0], error)
        told.append(task.request.id)
    for celery_id in dict.fromkeys(told):
        meta = celery_refusal(celery_id, error)
        refusal = ledger.refuse(celery_id, celery_result=meta, retention_s=resources.settings.retention_s)
        await resources.store.insist(refusal)
    await resources.store.insist(fair_queue.dead_letter(delivery, reason=f"{error.code}: {error}"))


def _named(raw: Any) -> str | None:
    """Return the execution id that a message names, if it is one."""
    named = raw.get("execution_id") if isinstance(raw, dict) else None
    return named if isinstance(named, str) and re.fullmatch(EXECUTION_ID_PATTERN, named) else None
