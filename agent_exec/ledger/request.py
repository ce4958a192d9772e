"""The ledger's calls of a caller: cancel, prioritise, send a word, look, list.

Owns the Python side of these scripts. Another tenant's execution is as good as missing to each. Does not know who calls.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_exec import keys, routing
from agent_exec.errors import NotFound
from agent_exec.hint import Hint
from agent_exec.ledger.pending import hint_of
from agent_exec.ledger.record import ExecutionRecord
from agent_exec.ledger.step_ref import execution_keys
from agent_exec.script import Call, Script

_LUA = Path(__file__).parent / "lua"
_CANCEL = Script.load(_LUA / "cancel.lua")
_PRIORITISE = Script.load(_LUA / "prioritise.lua")
_SEND_WORD = Script.load(_LUA / "send_word.lua")
_LOOK = Script.load(_LUA / "look.lua")
_LIST = Script.load(_LUA / "list.lua")


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The cancel is durable, and the execution will end as cancelled."""


@dataclass(frozen=True, slots=True)
class AlreadyOver:
    """The execution had ended before the caller came."""

    status: Literal["completed", "failed"]


@dataclass(frozen=True, slots=True)
class Prioritised:
    """The effective priority from here on; `queued` are the hints that wait with the old one."""

    priority: int
    queued: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """The `word` that stands under the name, for good: the first one. `hint` is of the step that it has made due, if any."""

    word: str
    hint: Hint | None


@dataclass(frozen=True, slots=True)
class NotWaiting:
    """No step awaits this word: none ever did, or its time has passed."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An execution in a tenant's list: its id, and when it was accepted."""

    execution_id: str
    created_ms: int


def cancel(tenant_id: str, execution_id: str) -> Call[CancelRequested | AlreadyOver]:
    """Ask for the end of an execution, and of all below it, which is durable: a worker ends each, whatever its steps are
    about, past every queue.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: bytes) -> CancelRequested | AlreadyOver:
        verdict: Any = reply.decode()
        if verdict == "gone":
            raise not_found(execution_id)
        return CancelRequested() if verdict == "requested" else AlreadyOver(verdict)

    args = [tenant_id, execution_id, keys.execution_prefix()]
    return Call(_CANCEL, execution_keys(tenant_id, execution_id), args, parse)


def prioritise(tenant_id: str, execution_id: str, *, wish: int) -> Call[Prioritised | AlreadyOver]:
    """Change the caller's wish for the priority of an execution and of all below it, 0–9; the plan bounds it as ever.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: list[Any]) -> Prioritised | AlreadyOver:
        verdict = reply[0].decode()
        if verdict == "gone":
            raise not_found(execution_id)
        if verdict != "changed":
            return AlreadyOver(verdict)
        _, priority, *rows = reply
        return Prioritised(priority, tuple(hint_of(row) for row in rows))

    return Call(
        _PRIORITISE,
        [*execution_keys(tenant_id, execution_id), keys.tenant(tenant_id)],
        [
            tenant_id,
            execution_id,
            wish,
            json.dumps(routing.priority_by_plan(wish)),
            routing.UNKNOWN_PLAN,
            keys.execution_prefix(),
        ],
        parse,
    )


def send_word(
    tenant_id: str, execution_id: str, *, name: str, word: str, early: bool = False
) -> Call[Sent | NotWaiting | AlreadyOver]:
    """Send the step that awaits `name` a word, which makes it due at once; with `early`, a step that is to await it.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: list[Any]) -> Sent | NotWaiting | AlreadyOver:
        verdict: Any = reply[0].decode()
        match verdict:
            case "gone":
                raise not_found(execution_id)
            case "nobody":
                return NotWaiting()
            case "sent":
                return Sent(reply[1].decode(), hint_of(reply[2]) if len(reply) > 2 else None)
            case _:
                return AlreadyOver(verdict)

    return Call(
        _SEND_WORD,
        [keys.execution(tenant_id, execution_id), keys.pending()],
        [tenant_id, execution_id, name, word, int(early)],
        parse,
    )


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
