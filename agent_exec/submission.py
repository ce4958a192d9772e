"""Taking in work: from a standard message to a stored execution and its first hint. Pure.

Owns what is the same for every door: Celery, HTTP, the client. Does not know which door it is, nor how a call is run.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from agent_exec.callbacks.door import Door
from agent_exec.contract.event import EventName, StartedData
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message, MessageMetadata, Payload
from agent_exec.contract.model import MAX_BODY_BYTES, TenantId
from agent_exec.errors import InvalidMessage
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, Event, Parent
from agent_exec.script import Call

#: Enough to mend a message by, and no more than a log line bears.
MAX_COMPLAINTS = 10
MAX_PLACE_CHARS = 100
#: What an execution that runs later still has to run in, before it is forgotten: the longest deadline.
TO_RUN_IN = timedelta(days=1)
#: Callbacks by https to the public Internet alone: what holds where nobody says what else is allowed.
STRICT = Door()


def id_of_key(kind: str, *, tenant_id: str, idempotency_key: str | None) -> str:
    """Return the id of a batch or a schedule, by its `kind`: the same for the same key of a tenant, a fresh one without."""
    if idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.UUID(ledger.digest(kind, tenant_id, idempotency_key)[:32]))


def message_from(raw: Any) -> Message:
    """Return the standard message that `raw`, decoded JSON, is.

    Raises:
        InvalidMessage: says which fields are wrong, without repeating their values.
    """
    try:
        text = to_json(raw, inf_nan_mode="constants")
    except PydanticSerializationError:
        raise InvalidMessage("The message holds text that is no Unicode, or is nested far too deep.") from None
    if len(text) > MAX_BODY_BYTES:
        raise InvalidMessage(f"The message has {len(text)} bytes; at most {MAX_BODY_BYTES} are taken.")
    try:
        return Message.model_validate_json(text)
    except ValidationError as error:
        raise InvalidMessage(f"The message breaks the contract: {complaints(error)}.") from None


def message_of(request: ExecutionRequest, *, tenant_id: str, execution_id: str | None = None) -> Message:
    """Return the standard message of an HTTP or client request; a fresh execution id unless one is given."""
    execution_id = execution_id or str(uuid.uuid4())
    overrides = request.agent_config
    if request.deadline_s is not None:
        asked = overrides.model_dump(exclude_unset=True)
        asked["limits"] = {**(asked.get("limits") or {}), "deadline_s": request.deadline_s}
        overrides = type(overrides).model_validate(asked)
    wishes = request.model_dump(include={"callback_url", "run_at"}, exclude_unset=True, exclude_none=True)
    return Message(
        task_id=execution_id,
        tenant_id=tenant_id,
        agent_id=request.agent_id,
        execution_id=execution_id,
        created_at=datetime.now(UTC),
        priority=request.priority,
        metadata=MessageMetadata.model_validate(request.metadata.model_dump(exclude_unset=True) | wishes),
        payload=Payload(query=request.query, agent_config=overrides, context=request.context),
    )


def admit(
    asked: ExecutionRequest | MessageMetadata, *, tenant_id: TenantId, open_retention_s: int, callback_door: Door
) -> None:
    """Let pass what a request or a message says of when it is to run, and of who is told its end.

    Raises:
        InvalidMessage: it is to run later than it would be kept.
        CallbackUrlInvalid: its callback may not go where it is to go.
        CallbacksNotConfigured: nothing could sign its callback.
    """
    if asked.callback_url is not None:
        callback_door.admit(asked.callback_url, tenant_id=tenant_id)
    latest = datetime.now(UTC) + max(timedelta(), timedelta(seconds=open_retention_s) - TO_RUN_IN)
    if asked.run_at is not None and asked.run_at > latest:
        raise InvalidMessage(f"run_at: nothing is kept for so long; name a time before {latest:%Y-%m-%dT%H:%MZ}.")


def store(
    message: Message,
    *,
    open_retention_s: int,
    max_queued: int,
    idempotency_key: str | None = None,
    links: str = "",
    batch: str = "",
    callback_door: Door | None = STRICT,
) -> Call[Acceptance]:
    """Return the call that stores the execution. Its answer is what an acknowledgement may rest on.

    Without a `callback_door` it was admitted before, as a schedule's request and the items of a batch are. Such an item is
    known for the same by its id and its mark, `batch`, alone.

    Raises:
        InvalidMessage, CallbackUrlInvalid, CallbacksNotConfigured: (at once) as `admit` does.
        Conflict: (when run) the id or the key came before with another request.
        QueueFull: (when run) the tenant has `max_queued` executions that no worker has begun.
    """
    if callback_door is not None:
        admit(
            message.metadata,
            tenant_id=message.tenant_id,
            open_retention_s=open_retention_s,
            callback_door=callback_door,
        )
    limits = message.payload.agent_config.limits
    return ledger.accept(
        message,
        request_digest=ledger.digest(batch) if batch else request_digest(message),
        started=Event(EventName.STARTED, StartedData(agent_id=message.agent_id).model_dump_json()),
        deadline_s=None if limits is None or "deadline_s" not in limits.model_fields_set else limits.deadline_s,
        retention_s=open_retention_s,
        max_queued=max_queued,
        idempotency_key=idempotency_key,
        links=links,
        batch=batch,
    )


def store_child(message: Message, *, parent: Parent, priority: int, open_retention_s: int) -> Call[Acceptance]:
    """Return the call that stores the execution which a step of another one asks for, once.

    It is known for the same by its id alone, which stands for the step: what its message says of limits may differ from one
    attempt of that step to the next.

    Raises:
        Conflict: (when run) somebody else's execution has this id.
        Orphan: (when run) the parent takes no child any more.
    """
    started = StartedData(agent_id=message.agent_id, parent_execution_id=parent.execution_id)
    return ledger.accept(
        message,
        request_digest=ledger.digest(parent.text),
        started=Event(EventName.STARTED, started.model_dump_json()),
        deadline_s=None,
        retention_s=open_retention_s,
        max_queued=0,
        parent=parent,
        priority=priority,
    )


def request_digest(message: Message) -> str:
    """Return a digest of what was asked, blind to the ids and times that differ from one try to the next."""
    asked = message.model_dump(
        mode="json", include={"tenant_id", "agent_id", "priority", "metadata", "payload"}, exclude_unset=True
    )
    return ledger.digest(json.dumps(asked, sort_keys=True))


def first_hint(message: Message, accepted: Acceptance) -> Hint:
    """Return the hint of the first step."""
    return Hint(
        tenant_id=message.tenant_id,
        agent_id=message.agent_id,
        execution_id=message.execution_id,
        step="prompt",
        priority=accepted.priority,
    )


def complaints(error: ValidationError) -> str:
    """Return what is wrong, field by field, for a caller to read: no values, no URLs."""
    return "; ".join(f"{_place(item['loc'])}: {item['msg']}" for item in error.errors()[:MAX_COMPLAINTS])


def _place(location: tuple[str | int, ...]) -> str:
    """Where a fault is. Names of the caller's own making are cut and kept printable."""
    path = ".".join(str(part) for part in location) or "body"
    return "".join(char if char.isprintable() else "?" for char in path[:MAX_PLACE_CHARS])
