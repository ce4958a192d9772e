"""One line of terminal text for a frame.

Owns the words and colours. Does not know where frames come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from agent_exec.contract.event import EventName, Frame

#: A line is for a glance; the frame itself is at `GET /frames`.
MAX_DETAIL_CHARS = 160
_COLOURS: Mapping[EventName, str] = {
    EventName.TOKEN: "white",
    EventName.TOOL_CALL_REQUESTED: "yellow",
    EventName.TOOL_CALL_COMPLETED: "yellow",
    EventName.TOOL_APPROVAL_REQUESTED: "magenta",
    EventName.STEP_RESTARTED: "magenta",
    EventName.COMPLETED: "green",
    EventName.FAILED: "red",
}


def frame_line(frame: Frame) -> str:
    """Return time, tenant, execution, sequence, event and its gist, coloured."""
    who = f"{frame.tenant_id:<10} {frame.execution_id[:8]} {frame.sequence:>4}"
    event = click.style(f"{frame.event.value:<26}", fg=_COLOURS.get(frame.event, "cyan"))
    return f"{click.style(f'{frame.timestamp:%H:%M:%S}', dim=True)} {who}  {event} {_gist(frame)}"


def _gist(frame: Frame) -> str:
    data: Mapping[str, Any] = frame.data
    match frame.event:
        case EventName.TOKEN:
            text = json.dumps(data.get("token", ""), ensure_ascii=False)
        case EventName.TOOL_CALL_REQUESTED | EventName.TOOL_APPROVAL_REQUESTED:
            text = f"{data.get('name')} {json.dumps(data.get('arguments'), ensure_ascii=False)}"
        case EventName.TOOL_CALL_COMPLETED:
            said = data.get("error") or data.get("result")
            text = f"{data.get('name')} → {json.dumps(said, ensure_ascii=False)}"
        case EventName.COMPLETED:
            text = str(_inside(data, "response", "output", "text"))
        case EventName.FAILED:
            text = f"{_inside(data, 'error', 'code')}: {_inside(data, 'error', 'message')}"
        case EventName.STARTED | EventName.PROGRESS | EventName.STEP_RESTARTED:
            text = " ".join(str(value) for value in data.values() if isinstance(value, str | int))
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 1] + "…"


def _inside(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
