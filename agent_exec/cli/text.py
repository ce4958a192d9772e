"""Text for a terminal: nothing in it may command the terminal, and tables stand in columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic_core import to_json

#: Longer than this, and arguments or a result hide the events around them; `--json` has all of it.
SHOWN_CHARS = 300

#: Control characters as their pictures: what a model or a tool writes must not move the cursor or set the clipboard.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """Return `text` with its control characters made visible, but for line ends and tabs."""
    return text.translate(_PICTURES)


def one_line(value: object) -> str:
    """Return JSON data, or text as it is, on one line, its beginning if it is long."""
    text = value if isinstance(value, str) else to_json(value).decode()
    text = printable(text.replace("\n", "⏎ "))
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def columns(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as lines, their cells in columns two spaces apart."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def moment(at: datetime | None) -> str:
    """Return a moment in the reader's own time zone."""
    return "" if at is None else at.astimezone().isoformat(sep=" ", timespec="milliseconds")
