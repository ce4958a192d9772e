"""Taking in work: from a standard message to a stored execution and its first hint. Pure.

Owns what is the same for every door: Celery, HTTP, the client. Does not know which door it is, nor how a call is run.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from agent_exec.contract.event import EventName, StartedData
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message, Payload
from agent_exec.contract.model import MAX_BODY_BYTES
from agent_exec.errors import InvalidMessage
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, Event
from agent_exec.script import Call

#: Enough to mend a message by, and no more than a log line bears.
MAX_COMPLAINTS = 10
MAX_PLACE_CHARS = 100


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
    return Message(
        task_id=execution_id,
        tenant_id=tenant_id,
        agent_id=request.agent_id,
        execution_id=execution_id,
        created_at=datetime.now(UTC),
        priority=request.priority,
        metadata=request.metadata,
        payload=Payload(query=request.query, agent_config=overrides, context=request.context),
    )


def store(
    message: Message, *, open_retention_s: int, max_queued: int, idempotency_key: str | None = None
) -> Call[Acceptance]:
    """Return the call that stores the execution. Its answer is what an acknowledgement may rest on.

    Raises:
        Conflict: (when run) the id or the key came before with another request.
        QueueFull: (when run) the tenant has `max_queued` executions that no worker has begun.
    """
    limits = message.payload.agent_config.limits
    return ledger.accept(
        message,
        request_digest=request_digest(message),
        started=Event(EventName.STARTED, StartedData(agent_id=message.agent_id).model_dump_json()),
        deadline_s=None if limits is None or "deadline_s" not in limits.model_fields_set else limits.deadline_s,
        retention_s=open_retention_s,
        max_queued=max_queued,
        idempotency_key=idempotency_key,
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
