"""The calls about a schedule: store, look, list, pause, resume, delete; and those of who begins what is due.

Owns the Python side of these scripts, and the id of the execution of each time. Does not know who calls, nor how an
execution runs.

Each time begins one execution, whoever dies meanwhile: its id comes from the schedule's and the time, and only who took a
time moves the schedule on from it. Of several times that passed while nobody looked, the first is begun, and no other.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_exec import keys
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.schedule import ScheduleRequest, ScheduleView
from agent_exec.errors import Conflict, NotFound, TooManySchedules
from agent_exec.ledger.record import at
from agent_exec.schedules import cron
from agent_exec.script import Call, Script

#: Whoever took a time and died is replaced after this long.
BEGIN_AGAIN_AFTER_MS = 5_000
DUE_AT_ONCE = 50
#: A page of schedules holds no more bytes of requests than that, but for the first.
BYTES_AT_ONCE = 1_000_000

_LUA = Path(__file__).parent / "lua"
_CREATE = Script.load(_LUA / "create.lua")
_LOOK = Script.load(_LUA / "look.lua")
_PAGE = Script.load(_LUA / "page.lua")
_PAUSE = Script.load(_LUA / "pause.lua")
_RESUME = Script.load(_LUA / "resume.lua")
_DELETE = Script.load(_LUA / "delete.lua")
_DUE = Script.load(_LUA / "due.lua")
_BEGUN = Script.load(_LUA / "begun.lua")


@dataclass(frozen=True, slots=True)
class ScheduleRef:
    """One schedule of one tenant."""

    tenant_id: str
    schedule_id: str


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A schedule as it stands; `fields` is its hash, decoded to text."""

    ref: ScheduleRef
    fields: dict[str, str]
    now_ms: int

    @property
    def due_ms(self) -> int:
        """The time at which it is due, or was."""
        return int(self.fields["next_ms"])

    @property
    def next_ms(self) -> int:
        """The time after that, and after now."""
        return cron.next_ms(self.fields["cron"], self.fields["timezone"], after_ms=max(self.now_ms, self.due_ms))

    @property
    def execution_id(self) -> str:
        """The id of the execution of the due time, the same whoever begins it."""
        return str(uuid.uuid5(uuid.UUID(self.ref.schedule_id), self.fields["next_ms"]))

    @property
    def request(self) -> ExecutionRequest:
        """What is asked each time."""
        return ExecutionRequest.model_validate_json(self.fields["request"])

    @property
    def may_overlap(self) -> bool:
        """Whether it begins although the execution before has not ended."""
        return self.fields["overlap"] == "1"

    @property
    def last_execution_id(self) -> str | None:
        """What it has begun last."""
        return self.fields.get("last_execution")

    def view(self) -> ScheduleView:
        """Return what a caller sees of it."""
        is_paused = "paused" in self.fields
        return ScheduleView(
            schedule_id=self.ref.schedule_id,
            tenant_id=self.ref.tenant_id,
            cron=self.fields["cron"],
            timezone=self.fields["timezone"],
            request=self.request,
            overlap=self.may_overlap,
            paused=is_paused,
            next_at=None if is_paused else at(self.fields["next_ms"]),
            last_at=at(self.fields["last_ms"]) if "last_ms" in self.fields else None,
            last_execution_id=self.last_execution_id,
            created_at=at(self.fields["created_ms"]),
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """A schedule in a tenant's list, and its place there in ms."""

    created_ms: int
    schedule: Scheduled


@dataclass(frozen=True, slots=True)
class Page:
    """Some schedules of a list, and whether they are its last."""

    listed: tuple[Listed, ...]
    is_last: bool


def create(ref: ScheduleRef, asked: ScheduleRequest, *, now_ms: int, at_most: int) -> Call[bool]:
    """Store a schedule, due from `now_ms` on; False where the same one was stored before.

    Raises:
        Conflict: (when run) its idempotency key came before with another request.
        TooManySchedules: (when run) the tenant has `at_most` schedules.
    """

    def parse(reply: bytes) -> bool:
        if reply == b"mismatch":
            raise Conflict(
                f"Schedule '{ref.schedule_id}': its idempotency key came before with another request; send a new one."
            )
        if reply == b"full":
            raise TooManySchedules(
                f"Tenant '{ref.tenant_id}' has {at_most} schedules, and at most so many may be; delete one first."
            )
        return reply == b"created"

    request = asked.request.model_dump_json(exclude_unset=True)
    digest = hashlib.sha256(asked.model_dump_json(exclude_unset=True).encode()).hexdigest()
    due_ms = cron.next_ms(asked.cron, asked.timezone, after_ms=now_ms)
    return Call(
        _CREATE,
        [_record(ref), keys.due_schedules(), keys.schedules(ref.tenant_id)],
        [*_names(ref), digest, asked.cron, asked.timezone, request, int(asked.overlap), due_ms, at_most],
        parse,
    )


def look(ref: ScheduleRef) -> Call[Scheduled]:
    """Read a schedule.

    Raises:
        NotFound: (when run) this tenant has no such schedule.
    """

    def parse(reply: list[Any]) -> Scheduled:
        now_ms, flat = reply
        _there(ref, bool(flat))
        return Scheduled(ref, _fields(flat), now_ms)

    return Call(_LOOK, [_record(ref)], [], parse)


def page(tenant_id: str, *, before_ms: int | None = None, skip: int = 0, limit: int) -> Call[Page]:
    """Read a tenant's schedules, newest first: those stored at or before `before_ms`, less `skip` of that very ms."""

    def parse(reply: list[Any]) -> Page:
        is_more, *rows = reply
        return Page(
            tuple(
                Listed(int(ms), Scheduled(ScheduleRef(tenant_id, name.decode()), _fields(flat), now_ms=0))
                for name, ms, flat in rows
            ),
            is_last=not is_more,
        )

    args: list[str | int] = ["+inf" if before_ms is None else before_ms, skip, limit, BYTES_AT_ONCE]
    return Call(_PAGE, [keys.schedules(tenant_id)], [*args, keys.schedule(tenant_id, "")], parse)


def pause(ref: ScheduleRef) -> Call[None]:
    """Let no further time begin anything.

    Raises:
        NotFound: (when run) this tenant has no such schedule.
    """
    return Call(_PAUSE, [_record(ref), keys.due_schedules()], _names(ref), lambda reply: _there(ref, bool(reply)))


def resume(standing: Scheduled) -> Call[None]:
    """Let a schedule go on, from the first of its times after now.

    Raises:
        NotFound: (when run) it was deleted meanwhile.
    """
    ref, fields = standing.ref, standing.fields
    due_ms = cron.next_ms(fields["cron"], fields["timezone"], after_ms=standing.now_ms)
    args: list[str | int] = [*_names(ref), due_ms]
    return Call(_RESUME, [_record(ref), keys.due_schedules()], args, lambda reply: _there(ref, bool(reply)))


def delete(ref: ScheduleRef) -> Call[None]:
    """Forget a schedule; what it has begun goes on.

    Raises:
        NotFound: (when run) this tenant has no such schedule.
    """
    found = [_record(ref), keys.due_schedules(), keys.schedules(ref.tenant_id)]
    return Call(_DELETE, found, _names(ref), lambda reply: _there(ref, bool(reply)))


def due() -> Call[list[Scheduled]]:
    """Take the schedules whose time has come."""

    def parse(reply: list[Any]) -> list[Scheduled]:
        now_ms, *rows = reply
        return [
            Scheduled(ScheduleRef(tenant.decode(), name.decode()), _fields(flat), now_ms) for tenant, name, flat in rows
        ]

    args: list[str | int] = [DUE_AT_ONCE, BEGIN_AGAIN_AFTER_MS, keys.schedule_prefix()]
    return Call(_DUE, [keys.due_schedules()], args, parse)


def begun(standing: Scheduled, *, is_begun: bool = True) -> Call[bool]:
    """Say that the execution of the due time is there, or was left out; False where somebody else has said so."""
    args: list[str | int] = [
        *_names(standing.ref),
        standing.due_ms,
        standing.next_ms,
        standing.execution_id if is_begun else "",
    ]
    return Call(_BEGUN, [_record(standing.ref), keys.due_schedules()], args, bool)


def _record(ref: ScheduleRef) -> str:
    return keys.schedule(ref.tenant_id, ref.schedule_id)


def _names(ref: ScheduleRef) -> list[str | int]:
    return [ref.tenant_id, ref.schedule_id]


def _there(ref: ScheduleRef, is_there: bool) -> None:
    if not is_there:
        raise NotFound(f"Schedule '{ref.schedule_id}': there is none, or none any more.")


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): text.decode() for name, text in zip(flat[::2], flat[1::2], strict=True)}
