"""The ledger's calls: accept, refuse, claim, renew, tell, record, join, wait, release, finish, cancel,
prioritise, due.

Owns the Python side of the scripts in `lua/`, one function a script, of the same name. Each call is safe to repeat after
a lost reply, and each checks the tenant. Does not know Celery, or what a step does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_exec import keys, routing
from agent_exec.contract.agent import Tenant
from agent_exec.contract.event import EventName
from agent_exec.contract.message import Message
from agent_exec.errors import Conflict, NotFound, QueueFull
from agent_exec.hint import CANCEL, Hint
from agent_exec.ledger.record import ExecutionRecord
from agent_exec.script import Call, Script

#: A fresh step's hint is sent in the same moment; it is looked for again after this long, should its sender have died.
LOST_HINT_AFTER_MS = 10_000
#: A hint that was sent again is looked for after this long: a queue may be long, and sending twice queues once.
LOOK_AGAIN_AFTER_MS = 60_000
#: How many steps are taken up at once, so that no script holds Redis long.
DUE_AT_ONCE = 100
#: Idempotency keys are remembered for a day (docs/promise.md).
IDEMPOTENCY_MS = 86_400_000

_LUA = Path(__file__).parent / "lua"
_ACCEPT = Script.load(_LUA / "accept.lua")
_REFUSE = Script.load(_LUA / "refuse.lua")
_CLAIM = Script.load(_LUA / "claim.lua")
_RENEW = Script.load(_LUA / "renew.lua")
_TELL = Script.load(_LUA / "tell.lua")
_RECORD = Script.load(_LUA / "record.lua")
_JOIN = Script.load(_LUA / "join.lua")
_WAIT = Script.load(_LUA / "wait.lua")
_RELEASE = Script.load(_LUA / "release.lua")
_FINISH = Script.load(_LUA / "finish.lua")
_CANCEL = Script.load(_LUA / "cancel.lua")
_PRIORITISE = Script.load(_LUA / "prioritise.lua")
_DUE = Script.load(_LUA / "due.lua")
_LOOK = Script.load(_LUA / "look.lua")
_NOTE_TENANT = Script.load(_LUA / "note_tenant.lua")
_LIST = Script.load(_LUA / "list.lua")

#: Why a write did not happen: no such step of this tenant, the execution has ended, another attempt holds the step, or
#: the same write took effect before. Every write answers one of these, or the word of its own for success.
REFUSALS = frozenset({"gone", "over", "fenced", "done"})


@dataclass(frozen=True, slots=True)
class StepRef:
    """Names one step."""

    tenant_id: str
    execution_id: str
    step: str


@dataclass(frozen=True, slots=True)
class Hold:
    """The right to write for one step: the fence that its claim gave out."""

    ref: StepRef
    fence: int


@dataclass(frozen=True, slots=True)
class Event:
    """An event to append: its name and its JSON."""

    name: EventName
    json: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An accepted execution and its effective priority; `replayed` when this request had been accepted before."""

    execution_id: str
    replayed: bool
    priority: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A step that is ours until the lease ends. `attempt` counts claims without an outcome, `retries` failed attempts."""

    hold: Hold
    now_ms: int
    attempt: int
    retries: int
    parent_id: str
    execution: ExecutionRecord


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """A step that is not to be done now, which makes late, lost and doubled hints harmless."""

    reason: Literal["gone", "over", "done", "busy", "early"]


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The cancel is durable; `hints` take it past the queues to a worker."""

    hints: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class AlreadyOver:
    """The execution had ended before the cancel came."""

    status: Literal["completed", "failed"]


@dataclass(frozen=True, slots=True)
class Prioritised:
    """The effective priority from here on; `queued` are the hints that wait with the old one."""

    priority: int
    queued: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class Due:
    """Steps to send hints for, and when the next one is due: in ms, None for none."""

    hints: tuple[Hint, ...]
    next_in_ms: int | None


@dataclass(frozen=True, slots=True)
class Listed:
    """An execution in a tenant's list: its id, and when it was accepted."""

    execution_id: str
    created_ms: int


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
) -> Call[Acceptance]:
    """Store an execution with its whole input, its first event and its first step.

    Raises:
        Conflict: (when run) the id, or the idempotency key, came before with another request.
        QueueFull: (when run) the tenant has `max_queued` executions that no worker has begun.
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
        return Acceptance(execution_id=execution_id, replayed=verdict == "replayed", priority=reply[2])

    tenant_id, execution_id = message.tenant_id, message.execution_id
    reserved = keys.idempotency(tenant_id, digest(idempotency_key or ""))
    return Call(
        _ACCEPT,
        [
            *_keys(tenant_id, execution_id),
            keys.executions(tenant_id),
            reserved,
            keys.tenant_of(execution_id),
            keys.queued(tenant_id),
            keys.tenant(tenant_id),
        ],
        [
            tenant_id,
            execution_id,
            message.agent_id,
            message.task_id,
            message.metadata.global_task_id or "",
            message.model_dump_json(exclude_unset=True),
            request_digest,
            json.dumps(routing.priority_by_plan(message.priority)),
            int((deadline_s or 0) * 1000),
            "prompt",
            started.name,
            started.json,
            LOST_HINT_AFTER_MS,
            retention_s * 1000,
            "" if idempotency_key is None else IDEMPOTENCY_MS,
            max_queued,
            routing.UNKNOWN_PLAN,
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


def claim(ref: StepRef, *, lease_s: float, worker: str) -> Call[Claimed | NotClaimed]:
    """Take a step, with all that is known of its execution."""

    def parse(reply: list[Any]) -> Claimed | NotClaimed:
        verdict = reply[0].decode()
        if verdict != "claimed":
            return NotClaimed(verdict)
        now_ms, fence, attempt, retries, parent, *flat = reply[1:]
        texts = [text.decode() for text in flat]
        return Claimed(
            hold=Hold(ref, fence),
            now_ms=now_ms,
            attempt=attempt,
            retries=retries,
            parent_id=parent.decode(),
            execution=ExecutionRecord(dict(zip(texts[::2], texts[1::2], strict=True))),
        )

    return Call(
        _CLAIM,
        [*_keys(ref.tenant_id, ref.execution_id), keys.queued(ref.tenant_id)],
        [ref.tenant_id, ref.execution_id, ref.step, int(lease_s * 1000), worker, EventName.STEP_RESTARTED],
        parse,
    )


def renew(holds: Sequence[Hold], *, lease_s: float) -> Call[list[Literal["held", "cancelled", "lost"]]]:
    """Renew leases, and learn which steps must stop: a verdict for each, in order."""
    flat = [part for hold in holds for part in (*_names(hold.ref), hold.fence)]
    return Call(
        _RENEW,
        [keys.pending(), *[keys.execution(hold.ref.tenant_id, hold.ref.execution_id) for hold in holds]],
        [int(lease_s * 1000), *flat],
        lambda reply: [verdict.decode() for verdict in reply],
    )


def tell(hold: Hold, events: Iterable[Event], *, piece: int = 0) -> Call[str]:
    """Append events of a running step; answers `told`, or a refusal.

    A `piece` (from 1) of streamed text is appended once however often it is told, and is declared void if the step
    starts anew.
    """
    return Call(
        _TELL,
        _keys(hold.ref.tenant_id, hold.ref.execution_id),
        [*_names(hold.ref), hold.fence, piece, *_flat(events)],
        _text,
    )


def record(
    hold: Hold,
    *,
    result: str,
    events: Iterable[Event],
    next_steps: Sequence[str],
    parent_id: str,
    priority: int,
    deadline_s: float | None = None,
    join: str = "",
) -> Call[str]:
    """Journal a result and create the steps that follow; with `join`, that step will wait for all of them."""
    return Call(
        _RECORD,
        _keys(hold.ref.tenant_id, hold.ref.execution_id),
        [
            *_names(hold.ref),
            hold.fence,
            result,
            parent_id,
            LOST_HINT_AFTER_MS,
            priority,
            "" if deadline_s is None else int(deadline_s * 1000),
            join,
            len(next_steps),
            *next_steps,
            *_flat(events),
        ],
        _text,
    )


def join(hold: Hold, *, result: str, events: Iterable[Event], target: str, parent_id: str) -> Call[str]:
    """Journal one of several steps that `target` waits for; the last of them creates it."""
    return Call(
        _JOIN,
        _keys(hold.ref.tenant_id, hold.ref.execution_id),
        [*_names(hold.ref), hold.fence, result, parent_id, LOST_HINT_AFTER_MS, target, *_flat(events)],
        _text,
    )


def wait(hold: Hold, *, due_in_s: float, events: Iterable[Event]) -> Call[str]:
    """Put a step back until it is due; no worker is held meanwhile."""
    return Call(
        _WAIT,
        _keys(hold.ref.tenant_id, hold.ref.execution_id),
        [*_names(hold.ref), hold.fence, int(due_in_s * 1000), *_flat(events)],
        _text,
    )


def release(hold: Hold) -> Call[str]:
    """Hand a step back as if it had not been claimed."""
    return Call(_RELEASE, _keys(hold.ref.tenant_id, hold.ref.execution_id), [*_names(hold.ref), hold.fence], _text)


def finish(
    hold: Hold,
    *,
    result: str,
    status: Literal["completed", "failed"],
    response: str,
    celery_result: str,
    events: Iterable[Event],
    retention_s: int,
) -> Call[str]:
    """End the execution; the last of `events` is its one terminal event."""
    tenant_id, execution_id = hold.ref.tenant_id, hold.ref.execution_id
    return Call(
        _FINISH,
        [
            *_keys(tenant_id, execution_id),
            keys.responses(tenant_id, execution_id),
            keys.celery_result(execution_id),
            keys.tenant_of(execution_id),
        ],
        [
            *_names(hold.ref),
            hold.fence,
            result,
            status,
            response,
            celery_result,
            retention_s * 1000,
            *_flat(events),
        ],
        _text,
    )


def cancel(tenant_id: str, execution_id: str) -> Call[CancelRequested | AlreadyOver]:
    """Ask for the end of an execution.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: list[Any]) -> CancelRequested | AlreadyOver:
        verdict = reply[0].decode()
        if verdict == "gone":
            raise not_found(execution_id)
        if verdict != "requested":
            return AlreadyOver(verdict)
        agent_id = reply[1].decode()
        steps = zip(reply[2::3], reply[4::3], strict=True)
        return CancelRequested(
            tuple(
                Hint(
                    tenant_id=tenant_id,
                    agent_id=agent_id,
                    execution_id=execution_id,
                    step=step.decode(),
                    priority=9,
                    label=CANCEL,
                    parent_id=parent.decode(),
                )
                for step, parent in steps
            )
        )

    return Call(_CANCEL, _keys(tenant_id, execution_id), [tenant_id, execution_id], parse)


def prioritise(tenant_id: str, execution_id: str, *, wish: int) -> Call[Prioritised | AlreadyOver]:
    """Change the caller's wish for an execution's priority, 0–9; the plan bounds it as ever.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: list[Any]) -> Prioritised | AlreadyOver:
        verdict = reply[0].decode()
        if verdict == "gone":
            raise not_found(execution_id)
        if verdict != "changed":
            return AlreadyOver(verdict)
        _, agent, priority, *flat = reply
        return Prioritised(
            priority,
            tuple(
                Hint(
                    tenant_id=tenant_id,
                    agent_id=agent.decode(),
                    execution_id=execution_id,
                    step=step.decode(),
                    priority=priority,
                    label=str(fence),
                    parent_id=parent.decode(),
                )
                for step, fence, parent in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
            ),
        )

    return Call(
        _PRIORITISE,
        [*_keys(tenant_id, execution_id), keys.tenant(tenant_id)],
        [tenant_id, execution_id, wish, json.dumps(routing.priority_by_plan(wish)), routing.UNKNOWN_PLAN],
        parse,
    )


def due() -> Call[Due]:
    """Take the steps whose time has come: retries, expired leases, lost hints."""

    def parse(reply: list[Any]) -> Due:
        nearest, *flat = reply
        rows = [flat[index : index + 7] for index in range(0, len(flat), 7)]
        hints = tuple(
            Hint(
                tenant_id=tenant.decode(),
                agent_id=agent.decode(),
                execution_id=execution.decode(),
                step=step.decode(),
                priority=int(priority),
                label=str(fence),
                parent_id=parent.decode(),
            )
            for tenant, execution, step, agent, priority, fence, parent in rows
        )
        return Due(hints, None if nearest < 0 else nearest)

    return Call(_DUE, [keys.pending()], [DUE_AT_ONCE, LOOK_AGAIN_AFTER_MS, keys.execution_prefix()], parse)


def look(tenant_id: str, execution_id: str) -> Call[ExecutionRecord]:
    """Read an execution.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: list[bytes]) -> ExecutionRecord:
        if not reply:
            raise not_found(execution_id)
        texts = [text.decode() for text in reply]
        return ExecutionRecord(dict(zip(texts[::2], texts[1::2], strict=True)))

    return Call(_LOOK, [keys.execution(tenant_id, execution_id)], [tenant_id], parse)


def list_executions(tenant_id: str, *, before_ms: int | None = None, skip: int = 0, limit: int) -> Call[list[Listed]]:
    """List a tenant's executions, newest first: those accepted at or before `before_ms`, less `skip` of that very ms."""

    def parse(reply: list[bytes]) -> list[Listed]:
        return [Listed(name.decode(), int(float(ms))) for name, ms in zip(reply[::2], reply[1::2], strict=True)]

    return Call(_LIST, [keys.executions(tenant_id)], ["+inf" if before_ms is None else before_ms, skip, limit], parse)


def not_found(execution_id: str) -> NotFound:
    """Return the error for an execution that this tenant does not have; another tenant's looks the same."""
    return NotFound(f"Execution '{execution_id}': not found. It may have expired; check the id.")


def _keys(tenant_id: str, execution_id: str) -> list[str]:
    return [
        keys.execution(tenant_id, execution_id),
        keys.streaming(tenant_id, execution_id),
        keys.outbox(),
        keys.outbox_wake(),
        keys.pending(),
    ]


def _names(ref: StepRef) -> tuple[str, str, str]:
    return ref.tenant_id, ref.execution_id, ref.step


def _flat(events: Iterable[Event]) -> list[str | int]:
    flat = [text for event in events for text in (event.name, event.json)]
    return [len(flat) // 2, *flat]


def _text(reply: bytes) -> Any:
    return reply.decode()
