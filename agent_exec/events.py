"""The event log of an execution, read; and the frame in which an event travels.

Owns reading after a sequence number, and the frame's text. Events come to be in the ledger's scripts alone. Does not know
who reads: the notifier, SSE, the client.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent_exec import keys
from agent_exec.contract.event import TERMINAL_EVENTS
from agent_exec.ledger.ledger import not_found
from agent_exec.script import Call, Script

_READ = Script.load(Path(__file__).parent / "ledger" / "lua" / "read.lua")

#: How many events are read at once: bounds a reply, at 100 bytes a token, to some tens of kilobytes.
READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event as it is stored; `json` is its data."""

    sequence: int
    name: str
    at_ms: int
    json: str

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows it."""
        return self.name in TERMINAL_EVENTS


@dataclass(frozen=True, slots=True)
class Page:
    """Some events of an execution, in order, and where it stands."""

    tenant_id: str
    execution_id: str
    task_id: str
    global_task_id: str | None
    is_over: bool
    last_sequence: int
    events: list[LoggedEvent]

    def frame(self, event: LoggedEvent) -> str:
        """Return the frame of one of these events, as JSON text (`contract.event.Frame`)."""
        at = datetime.fromtimestamp(event.at_ms / 1000, tz=UTC).isoformat(timespec="milliseconds")
        return (
            f'{{"event":"{event.name}","service":"agent-execution","task_id":{json.dumps(self.task_id)},'
            f'"global_task_id":{json.dumps(self.global_task_id)},"tenant_id":"{self.tenant_id}",'
            f'"execution_id":"{self.execution_id}","event_id":"{event_id(self.execution_id, event.sequence)}",'
            f'"sequence":{event.sequence},"timestamp":"{at}","data":{event.json}}}'
        )


def event_id(execution_id: str, sequence: int) -> str:
    """Return an event's id: the same at every delivery."""
    return f"{execution_id}:{sequence}"


def read(tenant_id: str, execution_id: str, *, after: int = 0, limit: int = READ_AT_ONCE) -> Call[Page]:
    """Read the events after sequence `after`, oldest first.

    Raises:
        NotFound: (when run) this tenant has no such execution.
    """

    def parse(reply: list[Any]) -> Page:
        if not reply:
            raise not_found(execution_id)
        return page_of(tenant_id, execution_id, reply)

    return Call(
        _READ,
        [keys.execution(tenant_id, execution_id), keys.streaming(tenant_id, execution_id)],
        [tenant_id, after, limit],
        parse,
    )


def page_of(tenant_id: str, execution_id: str, reply: list[Any]) -> Page:
    """Return the page that a script's reply holds: task, global task, status, last sequence, then four an event."""
    task_id, global_task_id, status, last_sequence = [text.decode() for text in reply[:4]]
    events = [
        LoggedEvent(int(sequence), name.decode(), int(at_ms), data.decode())
        for sequence, name, at_ms, data in zip(reply[4::4], reply[5::4], reply[6::4], reply[7::4], strict=True)
    ]
    return Page(
        tenant_id=tenant_id,
        execution_id=execution_id,
        task_id=task_id,
        global_task_id=global_task_id or None,
        is_over=status in ("completed", "failed"),
        last_sequence=int(last_sequence),
        events=events,
    )
