"""The outbox: executions with events that the orchestrator has not got, in Redis.

Owns the notifier's calls, one function a script in `lua/`, of the same name: what is to be sent, what was sent, what was
acknowledged, and which notifier may send. Does not know the socket. An execution is in the outbox while it has events
not sent (the ledger puts it there with each event), and in `unacked` while it has events sent and not acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_exec import keys
from agent_exec.events import Page, page_of
from agent_exec.notifier_state import NotifierReport
from agent_exec.script import Call, Script
from notifier.protocol import Ack, Position

#: How much is taken at once. The bytes bound what one process holds in memory, whatever the backlog.
EXECUTIONS_AT_ONCE = 128
EVENTS_OF_ONE_EXECUTION = 100
BYTES_AT_ONCE = 1_000_000
#: What the last active notifier said stays readable where none is active.
REPORT_KEPT_S = 86_400

_LUA = Path(__file__).parent / "lua"
_TAKE = Script.load(_LUA / "take.lua")
_SENT = Script.load(_LUA / "sent.lua")
_ACKED = Script.load(_LUA / "acked.lua")
_RECEIVED = Script.load(_LUA / "received.lua")
_REWIND = Script.load(_LUA / "rewind.lua")
_REPLAY = Script.load(_LUA / "replay.lua")
_TENANT_OF = Script.load(_LUA / "tenant_of.lua")
_LEFT = Script.load(_LUA / "left.lua")
_HOLD = Script.load(_LUA / "hold.lua")
_LET_GO = Script.load(_LUA / "let_go.lua")


@dataclass(frozen=True, slots=True)
class Taken:
    """Events to send, by execution; `more` where the outbox has others that can be taken at once."""

    pages: Sequence[Page]
    more: bool


@dataclass(frozen=True, slots=True)
class Left:
    """How many executions have events that are not sent, and how many have events that are not acknowledged."""

    unsent: int
    unacked: int


def take(*, events: int) -> Call[Taken]:
    """Read what has waited longest, at most so many `events`. Nothing is marked: taken again, it is the same."""

    def parse(reply: list[Any]) -> Taken:
        more, *rows = reply
        return Taken([_page(row) for row in rows], bool(more))

    return Call(
        _TAKE,
        [keys.outbox()],
        [
            EXECUTIONS_AT_ONCE,
            events,
            EVENTS_OF_ONE_EXECUTION,
            BYTES_AT_ONCE,
            keys.execution_prefix(),
            keys.streaming_prefix(),
        ],
        parse,
    )


def sent(positions: Sequence[Position], *, holder: str, forget_after_s: int) -> Call[int | None]:
    """Note how far executions were sent, and count those that wait now; None where `holder` is not the active notifier."""
    flat = [part for one in positions for part in (one.tenant_id, one.execution_id, one.sequence)]
    return Call(
        _SENT,
        [keys.outbox(), keys.outbox_unacked(), keys.notifier_lease()],
        [holder, keys.execution_prefix(), forget_after_s * 1000, *flat],
        lambda reply: reply if reply >= 0 else None,
    )


def acked(acks: Sequence[Ack], *, remember_s: int) -> Call[list[Literal["acked", "gone", "ahead"]]]:
    """Take the orchestrator's acks, each cumulative, and remember for a while that it acknowledges; a verdict on each."""
    flat = [part for ack in acks for part in (ack.execution_id, ack.sequence)]
    return Call(
        _ACKED,
        [keys.outbox_unacked(), keys.orchestrator_acks()],
        [keys.execution_prefix(), keys.tenant_of_prefix(), remember_s * 1000, *flat],
        lambda reply: [verdict.decode() for verdict in reply],
    )


def received(positions: Sequence[Position]) -> Call[bool]:
    """Note what has reached the orchestrator's socket; False where its own acks count instead."""
    flat = [part for one in positions for part in (one.tenant_id, one.execution_id, one.sequence)]
    return Call(_RECEIVED, [keys.outbox_unacked(), keys.orchestrator_acks()], [keys.execution_prefix(), *flat], bool)


def rewind() -> Call[int]:
    """Put a batch of what was sent and not acknowledged back into the outbox; 0 where none is left."""
    return Call(_REWIND, [keys.outbox(), keys.outbox_unacked()], [EXECUTIONS_AT_ONCE, keys.execution_prefix()], int)


def replay(position: Position) -> Call[Literal["replaying", "gone", "ahead"]]:
    """Have an execution's events sent again from `position` on."""
    return Call(
        _REPLAY,
        [keys.execution(position.tenant_id, position.execution_id), keys.outbox(), keys.outbox_wake()],
        [position.tenant_id, position.execution_id, position.sequence],
        _text,
    )


def tenant_of(execution_id: str) -> Call[str | None]:
    """Find whose execution this is. For the orchestrator alone, which serves every tenant."""
    return Call(_TENANT_OF, [keys.tenant_of(execution_id)], [], lambda reply: reply and reply.decode())


def left() -> Call[Left]:
    """Count what is left to do."""
    return Call(_LEFT, [keys.outbox(), keys.outbox_unacked()], [], lambda reply: Left(*reply))


def hold(report: NotifierReport, *, lease_s: float) -> Call[bool]:
    """Become the active notifier, or stay it, and tell how one stands; False where another one is active."""
    return Call(
        _HOLD,
        [keys.notifier_lease(), keys.notifier_report()],
        [report.holder, int(lease_s * 1000), report.model_dump_json(), REPORT_KEPT_S * 1000],
        bool,
    )


def let_go(holder: str) -> Call[bool]:
    """Stop being the active notifier."""
    return Call(_LET_GO, [keys.notifier_lease()], [holder], bool)


def _page(row: list[Any]) -> Page:
    tenant_id, execution_id, *page = row
    return page_of(tenant_id.decode(), execution_id.decode(), page)


def _text(reply: bytes) -> Any:
    return reply.decode()
