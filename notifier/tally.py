"""What one notifier has done, and how it stands.

Owns the counts. They are told with each renewal of its lease (`agent_exec/notifier_state.py`). Does not know who counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agent_exec.notifier_state import NotifierReport


@dataclass(slots=True)
class Tally:
    """The counts since this notifier started; times are in ms since 1970."""

    holder: str
    active_since_ms: int | None = None
    connected_since_ms: int | None = None
    #: WebSockets that were opened.
    connections: int = 0
    #: Frames that were sent, those that were sent again among them.
    sent: int = 0
    #: Why there is no connection, if there is none.
    trouble: str | None = None
    #: Messages that meant nothing to us or came to nothing, by reason.
    ignored: Counter[str] = field(default_factory=Counter)

    def connected(self, *, at_ms: int) -> None:
        """Count a WebSocket that was opened."""
        self.connections += 1
        self.connected_since_ms = at_ms
        self.trouble = None

    def report(self) -> NotifierReport:
        """Return them as they are told."""
        return NotifierReport(
            holder=self.holder,
            active_since_ms=self.active_since_ms,
            connected_since_ms=self.connected_since_ms,
            connections=self.connections,
            sent=self.sent,
            trouble=self.trouble,
            ignored=dict(self.ignored),
        )
