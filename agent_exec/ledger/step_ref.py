"""What the ledger's calls name: a step, an event to append; and the keys that most of its scripts take.

Owns these values alone. Does not know any script.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent_exec import keys
from agent_exec.contract.event import EventName


@dataclass(frozen=True, slots=True)
class StepRef:
    """Names one step."""

    tenant_id: str
    execution_id: str
    step: str


@dataclass(frozen=True, slots=True)
class Event:
    """An event to append: its name and its JSON."""

    name: EventName
    json: str


def execution_keys(tenant_id: str, execution_id: str) -> list[str]:
    """Return the five keys that `lua/_ledger.lua` takes."""
    return [
        keys.execution(tenant_id, execution_id),
        keys.streaming(tenant_id, execution_id),
        keys.outbox(),
        keys.outbox_wake(),
        keys.pending(),
    ]


def names(ref: StepRef) -> tuple[str, str, str]:
    """Return a step's names, as every script that concerns one takes them first."""
    return ref.tenant_id, ref.execution_id, ref.step


def told(events: Iterable[Event]) -> list[str | int]:
    """Return events as scripts take them: their number, then a name and JSON each."""
    flat = [text for event in events for text in (event.name, event.json)]
    return [len(flat) // 2, *flat]


def text(reply: bytes) -> Any:
    """Read a reply that is one word."""
    return reply.decode()
