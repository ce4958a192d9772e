"""The ledger's calls about the due-time set: what is due, and putting a step off.

Owns the Python side of these scripts, and how often a step is looked at. Does not know who looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_exec import keys
from agent_exec.hint import Hint
from agent_exec.ledger.step_ref import StepRef, names, text
from agent_exec.script import Call, Script

#: A step whose hint was sent again is looked at after this long, since its sender may have died first; then after twice as
#: long, and so on: a queue may be long, and sending into it what it holds is in vain.
LOOK_AGAIN_AFTER_MS = 5_000
LOOK_AGAIN_AT_MOST_AFTER_MS = 60_000
#: How many steps are taken up at once, so that no script holds Redis long.
DUE_AT_ONCE = 100
#: A step of a record that this release does not know is hinted again after this long, for a newer worker to take.
NEWER_AGAIN_AFTER_MS = 1_000

_LUA = Path(__file__).parent / "lua"
_DUE = Script.load(_LUA / "due.lua")
_PUT_OFF = Script.load(_LUA / "put_off.lua")


@dataclass(frozen=True, slots=True)
class Due:
    """Steps to send hints for, steps at which executions have to end, and when the next one is due: in ms, None for none."""

    hints: tuple[Hint, ...]
    ends: tuple[StepRef, ...]
    next_in_ms: int | None


def due() -> Call[Due]:
    """Take the steps whose time has come: retries, expired leases, lost hints, and executions that have to end."""

    def parse(reply: list[Any]) -> Due:
        nearest, *rows = reply
        return Due(
            hints=tuple(hint_of(row) for row in rows if len(row) > 3),
            ends=tuple(StepRef(*(name.decode() for name in row)) for row in rows if len(row) == 3),
            next_in_ms=None if nearest < 0 else nearest,
        )

    return Call(
        _DUE,
        [keys.pending()],
        [DUE_AT_ONCE, LOOK_AGAIN_AFTER_MS, LOOK_AGAIN_AT_MOST_AFTER_MS, keys.execution_prefix()],
        parse,
    )


def put_off(ref: StepRef) -> Call[str]:
    """Have the step's hint sent again in a moment, and change nothing else; answers `put off`, or `gone`.

    For a worker that got `newer`: a newer one will take it.
    """
    return Call(
        _PUT_OFF,
        [keys.execution(ref.tenant_id, ref.execution_id), keys.pending()],
        [*names(ref), NEWER_AGAIN_AFTER_MS],
        text,
    )


def hint_of(row: Sequence[Any]) -> Hint:
    """Return the hint that a script names (`lua/_hint.lua`)."""
    tenant, agent, execution, step, priority, fence, parent = row
    return Hint(
        tenant_id=tenant.decode(),
        agent_id=agent.decode(),
        execution_id=execution.decode(),
        step=step.decode(),
        priority=priority,
        label=str(fence),
        parent_id=parent.decode(),
    )
