"""The calls about callbacks: those of whoever sends them, and those of a tenant that asks how its own stand.

Owns the Python side of the scripts in `lua/`, and how long what is kept. Time is Redis's. A callback that is taken is on
its way until it is settled or its lease lapses; by the fence of its try, one that stalled is told that another has it.
Does not know HTTP.

A tenant's callbacks that wait stand in a ZSET of its own, and one for all says when each tenant is looked at: who was served
longest ago comes first, and has so many on their way at most. So one with slow receivers delays nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_exec import keys
from agent_exec.contract.callback import CallbackFault, CallbackState, CallbackView
from agent_exec.errors import AlreadyDelivered, NotFound
from agent_exec.ledger.record import at
from agent_exec.script import Call, Script

#: An open one and a dead letter are kept for so long after the last that happened to them: two weeks, and a retry is never
#: more than a day away.
KEEP_MS = 14 * 86_400_000
#: How many are taken at once, and of one tenant; the bytes bound what one reply holds in memory.
AT_ONCE = 32
AT_ONCE_OF_A_TENANT = 8
BYTES_AT_ONCE = 1_000_000
#: Of so many tenants the open ones are counted: a millisecond of the server's.
TENANTS_LOOKED_AT = 500

_LUA = Path(__file__).parent / "lua"
_TAKE = Script.load(_LUA / "take.lua")
_DELIVERED = Script.load(_LUA / "delivered.lua")
_PUT_OFF = Script.load(_LUA / "put_off.lua")
_BURY = Script.load(_LUA / "bury.lua")
_RELEASE = Script.load(_LUA / "release.lua")
_REDELIVER = Script.load(_LUA / "redeliver.lua")
_LOOK = Script.load(_LUA / "look.lua")
_PAGE = Script.load(_LUA / "page.lua")
_BACKLOG = Script.load(_LUA / "backlog.lua")

#: Where the callbacks in each state that is listed stand; those delivered are too many to list.
LISTS = {"waiting": keys.callbacks_waiting, "sending": keys.callbacks_sending, "dead": keys.callbacks_dead}
ListedState = Literal["waiting", "sending", "dead"]

_FIELDS = ("tenant", "url", "state", "attempts", "created_ms", "due_ms", "last_ms", "http_status", "fault")


@dataclass(frozen=True, slots=True)
class CallbackRef:
    """Names one callback."""

    tenant_id: str
    callback_id: str


@dataclass(frozen=True, slots=True)
class Sending:
    """A callback that is ours to send until its lease lapses; `attempts` had an outcome before."""

    ref: CallbackRef
    fence: int
    attempts: int
    created_ms: int
    url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """What is to be sent now, and when to look again: in ms, None where nothing waits."""

    callbacks: Sequence[Sending]
    next_in_ms: int | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A callback in a list: its id, its place there in ms, and how it stands, None where it has expired."""

    callback_id: str
    at_ms: int
    view: CallbackView | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """All tenants' open callbacks; for how long the first is overdue; and how many tries came to each outcome."""

    waiting: int
    sending: int
    lag_s: float
    outcomes: Mapping[str, int]


def take(*, room: int, of_a_tenant: int, lease_s: float) -> Call[Taken]:
    """Take what is due: at most `room`, and of each tenant no more than are then on their way, `of_a_tenant` in all."""

    def parse(reply: list[Any]) -> Taken:
        nearest, *rows = reply
        return Taken([_sending(row) for row in rows], None if nearest < 0 else nearest)

    return Call(
        _TAKE,
        [keys.callbacks()],
        [
            min(room, AT_ONCE),
            of_a_tenant,
            AT_ONCE_OF_A_TENANT,
            BYTES_AT_ONCE,
            int(lease_s * 1000),
            KEEP_MS,
            keys.callback_prefix(),
            keys.callbacks_waiting(""),
            keys.callbacks_sending(""),
        ],
        parse,
    )


def delivered(sending: Sending, *, status: int, keep_s: int) -> Call[str]:
    """Note that it has arrived; how it stands is kept for `keep_s`. Answers `delivered`, or a refusal (`_callback.lua`)."""
    return _settled(_DELIVERED, sending, status, keep_s * 1000)


def put_off(sending: Sending, *, fault: CallbackFault, status: int | None, due_in_s: float) -> Call[str]:
    """Note that this try failed; the next one is due in `due_in_s`. Answers `waiting`, or a refusal."""
    return _settled(_PUT_OFF, sending, fault, "" if status is None else status, int(due_in_s * 1000), KEEP_MS)


def bury(sending: Sending, *, fault: CallbackFault, status: int | None) -> Call[str]:
    """Give it up: a dead letter. Answers `dead`, or a refusal."""
    return _settled(_BURY, sending, fault, "" if status is None else status, KEEP_MS)


def release(sending: Sending) -> Call[str]:
    """Hand it back as if this try had not begun; it may have arrived all the same. Answers `waiting`, or a refusal."""
    ref = sending.ref
    return Call(_RELEASE, _keys(ref), [ref.tenant_id, ref.callback_id, sending.fence, KEEP_MS], _text)


def redeliver(ref: CallbackRef) -> Call[Literal["waiting", "sending"]]:
    """Have a callback sent now, a dead one with all its tries anew. Asking twice is asking once.

    Raises:
        NotFound: (when run) this tenant has no such callback.
        AlreadyDelivered: (when run) its receiver has it.
    """

    def parse(reply: bytes) -> Any:
        verdict = reply.decode()
        if verdict == "gone":
            raise _not_found(ref)
        if verdict == "delivered":
            raise AlreadyDelivered(f"Callback '{ref.callback_id}': its receiver has answered that it has it.")
        return verdict

    return Call(_REDELIVER, [*_keys(ref), keys.callbacks_wake()], [ref.tenant_id, ref.callback_id, KEEP_MS], parse)


def look(ref: CallbackRef) -> Call[CallbackView]:
    """Read how a callback stands.

    Raises:
        NotFound: (when run) this tenant has no such callback.
    """

    def parse(reply: list[Any]) -> CallbackView:
        if not reply:
            raise _not_found(ref)
        return _view(ref.callback_id, reply)

    return Call(_LOOK, [keys.callback(ref.tenant_id, ref.callback_id)], [ref.tenant_id, *_FIELDS], parse)


def page(
    tenant_id: str, state: ListedState, *, before_ms: int | None = None, skip: int = 0, limit: int
) -> Call[list[Listed]]:
    """List a tenant's callbacks in one state, the latest first: by when they are due, their lease lapses, they died.

    Those at or before `before_ms`, less `skip` of that very ms.
    """

    def parse(reply: list[Any]) -> list[Listed]:
        return [
            Listed(name.decode(), int(float(ms)), _view(name.decode(), values) if values else None)
            for name, ms, *values in reply
        ]

    return Call(
        _PAGE,
        [LISTS[state](tenant_id)],
        ["+inf" if before_ms is None else before_ms, skip, limit, f"{keys.callback_prefix()}{tenant_id}:", *_FIELDS],
        parse,
    )


def backlog() -> Call[Backlog]:
    """Count what is open, and what tries have come to. Exact while fewer than `TENANTS_LOOKED_AT` have open ones."""

    def parse(reply: list[Any]) -> Backlog:
        waiting, sending, late_ms, *flat = reply
        names = [name.decode() for name in flat[::2]]
        return Backlog(waiting, sending, late_ms / 1000, dict(zip(names, map(int, flat[1::2]), strict=True)))

    return Call(
        _BACKLOG,
        [keys.callbacks(), keys.callbacks_outcomes()],
        [TENANTS_LOOKED_AT, keys.callbacks_waiting(""), keys.callbacks_sending("")],
        parse,
    )


def _settled(script: Script, sending: Sending, *args: str | int) -> Call[str]:
    ref = sending.ref
    return Call(
        script,
        [*_keys(ref), keys.callbacks_outcomes()],
        [ref.tenant_id, ref.callback_id, sending.fence, *args],
        _text,
    )


def _text(reply: bytes) -> str:
    return reply.decode()


def _keys(ref: CallbackRef) -> list[str]:
    """Return the five keys that `lua/_callback.lua` takes."""
    return [
        keys.callback(ref.tenant_id, ref.callback_id),
        keys.callbacks_waiting(ref.tenant_id),
        keys.callbacks_sending(ref.tenant_id),
        keys.callbacks_dead(ref.tenant_id),
        keys.callbacks(),
    ]


def _sending(row: Sequence[Any]) -> Sending:
    tenant_id, callback_id, fence, attempts, created_ms, url, body = row
    ref = CallbackRef(tenant_id.decode(), callback_id.decode())
    return Sending(ref, fence, attempts, created_ms, url.decode(), body)


def _view(callback_id: str, values: Sequence[bytes | None]) -> CallbackView:
    """Return what the fields say; what is not known stands as nothing, or is missing."""
    texts = [None if value in (None, b"") else value.decode() for value in values]
    known = dict(zip(_FIELDS, texts, strict=True))
    state: CallbackState = known["state"]  # type: ignore[assignment]  # the scripts write no other
    fault: CallbackFault | None = known["fault"]  # type: ignore[assignment]  # as above
    return CallbackView(
        callback_id=callback_id,
        tenant_id=known["tenant"] or "",
        url=known["url"] or "",
        state=state,
        attempts=int(known["attempts"] or 0),
        created_at=at(known["created_ms"] or 0),
        due_at=at(due_ms) if (due_ms := known["due_ms"]) is not None else None,
        last_attempt_at=at(last_ms) if (last_ms := known["last_ms"]) is not None else None,
        last_status=int(status) if (status := known["http_status"]) is not None else None,
        last_fault=fault,
    )


def _not_found(ref: CallbackRef) -> NotFound:
    return NotFound(f"Callback '{ref.callback_id}': not found. It may have expired; check the id.")
