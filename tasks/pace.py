"""How long streamed text is gathered before it is told, and how that grows so that no execution has too many events. Pure.

Owns the bound on the events of an execution. Does not know how they are told.
"""

from __future__ import annotations

#: An execution has no more events than these and the few of its steps that are no text (faults.md, S37).
MAX_EVENTS = 20_000
#: From here on text is gathered longer, and twice as long again after each so many more events. At the default of ten
#: milliseconds the last five thousand come to 5 minutes of text without a pause, the first fifteen to 2 1/2.
WIDENS_FROM = 15_000
DOUBLES_EVERY = 1_000
#: What is doubled where text is not gathered at all.
LEAST_WIDENED_MS = 10


def flush_after_s(events: int, *, flush_ms: int) -> float | None:
    """Return how long text is gathered before it is told, in an execution that has so many `events`.

    None: until its step ends. No text is lost by that, nor is there a gap in the sequence: the step's own record tells it.
    """
    if events < WIDENS_FROM:
        return flush_ms / 1_000
    if events >= MAX_EVENTS:
        return None
    doubled = 1 + (events - WIDENS_FROM) // DOUBLES_EVERY
    return float(max(flush_ms, LEAST_WIDENED_MS) * 2**doubled) / 1_000
