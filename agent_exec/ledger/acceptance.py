"""The ledger's calls at the door: accept, refuse, and what is to be known of a tenant there.

Owns the Python side of these scripts. Does not know which door it is, nor how an execution runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_exec import keys, routing
from agent_exec.contract.agent import Tenant
from agent_exec.contract.message import Message
from agent_exec.errors import Conflict, QueueFull
from agent_exec.ledger.life import SCHEMA_VERSION
from agent_exec.ledger.parent import Parent
from agent_exec.ledger.step_ref import Event, execution_keys
from agent_exec.script import Call, Script

#: A fresh step's hint is sent in the same moment; it is looked for again after this long, should its sender have died.
LOST_HINT_AFTER_MS = 10_000
#: Idempotency keys are remembered for a day (docs/promise.md).
IDEMPOTENCY_MS = 86_400_000
#: How many entries of the outbox an acceptance looks at, to drop those of executions that have expired. It adds one itself:
#: where nobody takes any, there is one of the expired for each two of the others.
OUTBOX_LOOKS = 3

_LUA = Path(__file__).parent / "lua"
_ACCEPT = Script.load(_LUA / "accept.lua")
_REFUSE = Script.load(_LUA / "refuse.lua")
_NOTE_TENANT = Script.load(_LUA / "note_tenant.lua")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An accepted execution and its effective priority.

    `replayed`: this request had been accepted before. `begins`: the hint of its first step is to be sent now, which is
    neither so then nor where it is to run later.
    """

    execution_id: str
    replayed: bool
    begins: bool
    priority: int


class Orphan(Exception):
    """The parent of a child that was to be accepted is not there, has ended or has to, or knows of that child's end."""


def digest(*parts: str) -> str:
    """Return a digest of text, to tell the same request from another."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def accept(
    message: Message,
    *,
    request_digest: str,
    started: Event,
    deadline_s: float | None,
    retention_s: int,
    max_queued: int,
    idempotency_key: str | None = None,
    parent: Parent | None = None,
    priority: int | None = None,
    links: str = "",
    batch: str = "",
) -> Call[Acceptance]:
    """Store an execution with its whole input, its first event and its first step.

    With a `parent` of the same tenant it is that one's child: it is sent the word when this one has ended, its id; whatever
    ends the parent ends this one; its deadline is no later; and `max_queued` does not hold for it. `priority` is effective
    in place of what plan and wish come to. `links` is the JSON of what follows its end (contract/links.py), if anything
    does; `batch`, of an item, its batch's id and its index there.

    Raises:
        Conflict: (when run) the id, or the idempotency key, came before with another request.
        QueueFull: (when run) the tenant has `max_queued` executions that no worker has begun.
        Orphan: (when run) the parent takes no child any more.
    """

    def parse(reply: list[Any]) -> Acceptance:
        verdict, execution_id = reply[0].decode(), reply[1].decode()
        if verdict == "mismatch":
            what = "idempotency key" if idempotency_key is not None else "execution id"
            raise Conflict(f"Execution '{execution_id}': this {what} came before with another request; send a new one.")
        if verdict == "full":
            raise QueueFull(
                f"Tenant '{tenant_id}' has {reply[2]} executions waiting, and at most {max_queued} may; send again when "
                "some have begun."
            )
        if verdict == "orphan":
            raise Orphan(f"Execution '{execution_id}': its parent has ended, or has to.")
        return Acceptance(
            execution_id=execution_id,
            replayed=verdict == "replayed",
            begins=verdict == "accepted",
            priority=reply[2],
        )

    tenant_id, execution_id = message.tenant_id, message.execution_id
    reserved = keys.idempotency(tenant_id, digest(idempotency_key or ""))
    by_plan = routing.priority_by_plan(message.priority)
    run_at = message.metadata.run_at
    return Call(
        _ACCEPT,
        [
            *execution_keys(tenant_id, execution_id),
            keys.executions(tenant_id),
            reserved,
            keys.tenant_of(execution_id),
            keys.queued(tenant_id),
            keys.tenant(tenant_id),
            keys.links(tenant_id, execution_id),
        ],
        [
            tenant_id,
            execution_id,
            message.agent_id,
            message.task_id,
            message.metadata.global_task_id or "",
            message.model_dump_json(exclude_unset=True),
            request_digest,
            json.dumps(by_plan if priority is None else dict.fromkeys(by_plan, priority)),
            int((deadline_s or 0) * 1000),
            "prompt",
            started.name,
            started.json,
            LOST_HINT_AFTER_MS,
            retention_s * 1000,
            "" if idempotency_key is None else IDEMPOTENCY_MS,
            max_queued,
            routing.UNKNOWN_PLAN,
            SCHEMA_VERSION,
            message.priority,
            OUTBOX_LOOKS,
            keys.execution_prefix(),
            "" if parent is None else parent.text,
            links,
            message.metadata.callback_url or "",
            batch,
            0 if run_at is None else int(run_at.timestamp() * 1000),
        ],
        parse,
    )


def refuse(execution_id: str, *, celery_result: str, retention_s: int) -> Call[bool]:
    """Keep the Celery result of a message that was not taken in; one that an execution stands for keeps its own."""
    return Call(
        _REFUSE,
        [keys.celery_result(execution_id), keys.tenant_of(execution_id)],
        [celery_result, retention_s * 1000],
        bool,
    )


def note_tenant(tenant: Tenant, *, keep_s: int) -> Call[bool]:
    """Keep what is known of a tenant, so that its plan counts when its next work is accepted."""
    return Call(_NOTE_TENANT, [keys.tenant(tenant.tenant_id)], [tenant.plan, keep_s * 1000], bool)
