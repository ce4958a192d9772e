"""The ledger's calls of a worker for its steps: claim, renew, tell, tell_pieces, mark; and the ends of an attempt: record,
join, wait, release, finish.

Owns the Python side of these scripts. Each may be repeated after a lost reply: the same `Call`, run again, is the same call.
Does not know what a step does.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_exec import keys
from agent_exec.callbacks.callbacks import KEEP_MS as CALLBACK_KEEP_MS
from agent_exec.contract.event import EventName
from agent_exec.hint import Hint
from agent_exec.ledger.acceptance import LOST_HINT_AFTER_MS
from agent_exec.ledger.life import SCHEMA_VERSION
from agent_exec.ledger.links import LOST_LINKS_AFTER_MS
from agent_exec.ledger.pending import hint_of
from agent_exec.ledger.record import ExecutionRecord
from agent_exec.ledger.step_ref import Event, StepRef, execution_keys, names, text, told
from agent_exec.script import Call, Script

_LUA = Path(__file__).parent / "lua"
_CLAIM = Script.load(_LUA / "claim.lua")
_RENEW = Script.load(_LUA / "renew.lua")
_TELL = Script.load(_LUA / "tell.lua")
_TELL_PIECES = Script.load(_LUA / "tell_pieces.lua")
_RECORD = Script.load(_LUA / "record.lua")
_JOIN = Script.load(_LUA / "join.lua")
_MARK = Script.load(_LUA / "mark.lua")
_WAIT = Script.load(_LUA / "wait.lua")
_RELEASE = Script.load(_LUA / "release.lua")
_FINISH = Script.load(_LUA / "finish.lua")

#: Why a write did not happen: no such step of this tenant, the execution has ended, another attempt holds the step, or
#: this attempt has ended by the same write before. Every write answers one of these, or the word of its own for success.
REFUSALS = frozenset({"gone", "over", "fenced", "done"})


@dataclass(frozen=True, slots=True)
class Hold:
    """The right to write for one step: the fence that its claim gave out."""

    ref: StepRef
    fence: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of streamed text, as the JSON of its event; `number` counts an attempt's, from 1."""

    hold: Hold
    number: int
    json: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A step that is ours until the lease ends. `attempt` counts claims without an outcome, `retries` failed attempts.

    `note` is what it said of itself when it last waited, or by `mark` since. `word` is the one from outside that it last
    awaited, if it came.
    """

    hold: Hold
    now_ms: int
    attempt: int
    retries: int
    parent_id: str
    note: str
    word: str | None
    execution: ExecutionRecord


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """A step that is not to be done now, which makes late, lost and doubled hints harmless.

    `newer`: a release to come has accepted it; `put_off` has its hint sent again.
    """

    reason: Literal["gone", "newer", "over", "done", "busy", "early"]


@dataclass(frozen=True, slots=True)
class Finished:
    """The execution has ended. `hint` is to be pushed: it has the parent that waited for this end go on at once."""

    hint: Hint | None


def claim(ref: StepRef, *, lease_s: float, worker: str, fields: Sequence[str] = ()) -> Call[Claimed | NotClaimed]:
    """Take a step, with what its execution has accepted and journaled; with `fields`, with these alone."""

    def parse(reply: list[Any]) -> Claimed | NotClaimed:
        verdict = reply[0].decode()
        if verdict != "claimed":
            return NotClaimed(verdict)
        now_ms, fence, attempt, retries, parent, note, word, *flat = reply[1:]
        texts = [text.decode() for text in flat]
        return Claimed(
            hold=Hold(ref, fence),
            now_ms=now_ms,
            attempt=attempt,
            retries=retries,
            parent_id=parent.decode(),
            note=note.decode(),
            word=None if word is None else word.decode(),
            execution=ExecutionRecord(dict(zip(texts[::2], texts[1::2], strict=True))),
        )

    return Call(
        _CLAIM,
        [*execution_keys(ref.tenant_id, ref.execution_id), keys.queued(ref.tenant_id)],
        [
            *names(ref),
            int(lease_s * 1000),
            worker,
            _own_name(),
            EventName.STEP_RESTARTED,
            SCHEMA_VERSION,
            len(fields),
            *fields,
        ],
        parse,
    )


def renew(holds: Sequence[Hold], *, lease_s: float) -> Call[list[Literal["held", "cancelled", "lost"]]]:
    """Renew leases, and learn which steps must stop: a verdict for each, in order."""
    flat = [part for hold in holds for part in (*names(hold.ref), hold.fence)]
    return Call(
        _RENEW,
        [keys.pending(), *[keys.execution(hold.ref.tenant_id, hold.ref.execution_id) for hold in holds]],
        [int(lease_s * 1000), *flat],
        lambda reply: [verdict.decode() for verdict in reply],
    )


def tell(hold: Hold, events: Iterable[Event]) -> Call[str]:
    """Append events of a running step; answers `told`, or a refusal. They are appended once by each call."""
    return Call(
        _TELL,
        execution_keys(hold.ref.tenant_id, hold.ref.execution_id),
        [*names(hold.ref), hold.fence, _own_name(), *told(events)],
        text,
    )


def tell_pieces(pieces: Sequence[Piece]) -> Call[list[str]]:
    """Append pieces of streamed text; answers for each, in order, `told` or a refusal.

    A piece is appended once however often it is told, and is declared void if its step starts anew.
    """
    found = [
        key
        for piece in pieces
        for key in (
            keys.execution(piece.hold.ref.tenant_id, piece.hold.ref.execution_id),
            keys.streaming(piece.hold.ref.tenant_id, piece.hold.ref.execution_id),
        )
    ]
    flat = [part for piece in pieces for part in (*names(piece.hold.ref), piece.hold.fence, piece.number, piece.json)]
    return Call(
        _TELL_PIECES,
        [keys.outbox(), keys.outbox_wake(), *found],
        [EventName.TOKEN, *flat],
        lambda reply: [verdict.decode() for verdict in reply],
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
    later: Sequence[str] = (),
) -> Call[str]:
    """Journal a result and create the steps that follow; with `join`, that step will wait for all of them.

    It waits for those named `later` too: each of the others that is done creates one of them, in their order.
    """
    return Call(
        _RECORD,
        execution_keys(hold.ref.tenant_id, hold.ref.execution_id),
        [
            *names(hold.ref),
            hold.fence,
            result,
            parent_id,
            LOST_HINT_AFTER_MS,
            priority,
            "" if deadline_s is None else int(deadline_s * 1000),
            join,
            len(next_steps),
            *next_steps,
            json.dumps(later) if later else "",
            *told(events),
        ],
        text,
    )


def join(hold: Hold, *, result: str, events: Iterable[Event], target: str, parent_id: str) -> Call[str]:
    """Journal one of several steps that `target` waits for.

    Answers a refusal; `joined` where this was the last of them, and `target` was created; `opened ` and a step's name where
    that one, named as coming later, was created; else `waiting`.
    """
    return Call(
        _JOIN,
        execution_keys(hold.ref.tenant_id, hold.ref.execution_id),
        [*names(hold.ref), hold.fence, result, parent_id, LOST_HINT_AFTER_MS, target, *told(events)],
        text,
    )


def mark(hold: Hold, *, note: str) -> Call[str]:
    """Note something with a running step before it does what may be done once; answers `marked`, or a refusal.

    The note comes back with the step's claims, whatever becomes of this attempt, until the step waits.
    """
    return Call(
        _MARK, execution_keys(hold.ref.tenant_id, hold.ref.execution_id), [*names(hold.ref), hold.fence, note], text
    )


def wait(
    hold: Hold, *, due_in_s: float, events: Iterable[Event], note: str = "", counted: bool = True, awaits: str = ""
) -> Call[str]:
    """Put a step back until it is due; no worker is held meanwhile.

    `note` comes back with the claims until the step waits again. Without `counted` it is a deferral, and no retry.
    `awaits` names a word from outside (`send_word`): the step is due when it comes, or has come; `due_in_s` is how long at
    most.
    """
    return Call(
        _WAIT,
        execution_keys(hold.ref.tenant_id, hold.ref.execution_id),
        [*names(hold.ref), hold.fence, int(due_in_s * 1000), note, int(counted), awaits, *told(events)],
        text,
    )


def release(hold: Hold) -> Call[str]:
    """Hand a step back as if it had not been claimed."""
    return Call(
        _RELEASE, execution_keys(hold.ref.tenant_id, hold.ref.execution_id), [*names(hold.ref), hold.fence], text
    )


def finish(
    hold: Hold,
    *,
    result: str,
    status: Literal["completed", "failed"],
    response: str,
    celery_result: str,
    events: Iterable[Event],
    retention_s: int,
    cancelled: bool = False,
) -> Call[Finished | str]:
    """End the execution, create the callback that was asked for, and ask for the end of its children.

    The last of `events` is its one terminal event.

    Answers a refusal; or `cancelled`, and writes nothing, where somebody asked for the end meanwhile and this is another
    end: whoever was told that it will be cancelled was told the truth.
    """
    tenant_id, execution_id = hold.ref.tenant_id, hold.ref.execution_id

    def parse(reply: list[Any]) -> Finished | str:
        verdict: str = reply[0].decode()
        if verdict != "finished":
            return verdict
        return Finished(hint_of(reply[1]) if len(reply) > 1 else None)

    return Call(
        _FINISH,
        [
            *execution_keys(tenant_id, execution_id),
            keys.responses(tenant_id, execution_id),
            keys.celery_result(execution_id),
            keys.tenant_of(execution_id),
            keys.links(tenant_id, execution_id),
            keys.unsent_links(),
            keys.callback(tenant_id, execution_id),
            keys.callbacks_waiting(tenant_id),
            keys.callbacks(),
            keys.callbacks_wake(),
        ],
        [
            *names(hold.ref),
            hold.fence,
            result,
            status,
            response,
            celery_result,
            retention_s * 1000,
            int(cancelled),
            keys.execution_prefix(),
            LOST_LINKS_AFTER_MS,
            CALLBACK_KEEP_MS,
            keys.batch_root(),
            *told(events),
        ],
        parse,
    )


def _own_name() -> str:
    """Return what one call calls itself, so that its repetition is known for one."""
    return secrets.token_hex(8)
