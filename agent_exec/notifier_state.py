"""How the notifier stands: which one is active, whether it is connected, and what waits to be told.

Owns what a notifier says of itself, and reading it beside the outbox. Does not know how events are sent: `notifier/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from agent_exec import keys
from agent_exec.script import Call, Script

_NOTIFIER_STATE = Script.load(Path(__file__).parent / "lua" / "notifier_state.lua")

#: Of so many executions, those that have waited longest, the oldest event is looked for. That they are this many costs the
#: server less than a millisecond.
EXECUTIONS_LOOKED_AT = 128


class NotifierReport(BaseModel):
    """What an active notifier says of itself with each renewal of its lease; times in ms since 1970, by its own clock."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # of another release, it may say more

    holder: str
    active_since_ms: int | None = None
    connected_since_ms: int | None = None
    connections: int = 0
    sent: int = 0
    trouble: str | None = None
    ignored: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class NotifierState:
    """The active notifier, and what waits.

    `report` is what the active one last said, or, where none is active, the one before it. `unsent` and `unacked` count
    executions; `lag_s` is the age of the oldest event that was not sent, 0 where none waits.
    """

    is_active: bool
    report: NotifierReport | None
    unsent: int
    unacked: int
    lag_s: float

    @property
    def is_connected(self) -> bool:
        """Whether an active notifier has a connection to the orchestrator."""
        return self.is_active and self.report is not None and self.report.connected_since_ms is not None


def notifier_state() -> Call[NotifierState]:
    """Read how it stands. The lag is exact while fewer than `EXECUTIONS_LOOKED_AT` executions wait."""

    def parse(reply: list[Any]) -> NotifierState:
        is_active, report, unsent, unacked, lag_ms = reply
        return NotifierState(
            is_active=bool(is_active),
            report=NotifierReport.model_validate_json(report) if report else None,
            unsent=unsent,
            unacked=unacked,
            lag_s=max(0, lag_ms) / 1000,
        )

    return Call(
        _NOTIFIER_STATE,
        [keys.notifier_lease(), keys.notifier_report(), keys.outbox(), keys.outbox_unacked()],
        [EXECUTIONS_LOOKED_AT, keys.execution_prefix(), keys.streaming_prefix()],
        parse,
    )
