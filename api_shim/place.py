"""Where a list goes on: the cursor between one page and the next.

Owns its form. Does not know what is listed.
"""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from dataclasses import dataclass

from agent_exec.errors import InvalidMessage


@dataclass(frozen=True, slots=True)
class Place:
    """Behind the first `skip` entries that stand at or before `before_ms`, None for the latest."""

    before_ms: int | None = None
    skip: int = 0

    def behind(self, at_ms: int) -> Place:
        """Return the place behind one more entry, which stands at `at_ms`."""
        return Place(at_ms, self.skip + 1 if at_ms == self.before_ms else 1)

    def text(self, *, of: str) -> str:
        """Return it as an opaque cursor, good for this one list alone: `of` says whose it is."""
        return base64.urlsafe_b64encode(f"{of}:{self.before_ms}:{self.skip}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, cursor: str | None, *, of: str) -> Place:
        """Read a cursor.

        Raises:
            InvalidMessage: it is none, or another list's.
        """
        if cursor is None:
            return cls()
        with suppress(ValueError):  # not base64, not ASCII
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
            parts = re.fullmatch(r"([a-z0-9_ -]+):(\d{1,15}):(\d{1,9})", text)
            if parts is not None and parts[1] == of:
                return cls(int(parts[2]), int(parts[3]))
        raise InvalidMessage("This cursor is not one that a list of yours gave. Begin without one.")
