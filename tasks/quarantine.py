"""Where the steps run that workers have died under: one of them at a time in a process.

A worker that dies takes hundreds of steps with it, and nothing tells the guilty one from those that ran beside it. Tried
again side by side they would die together until all are poisoned; apart, only the guilty one does. Owns the one place.
Does not know what makes a step a suspect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Quarantine:
    """The place of one process."""

    def __init__(self) -> None:
        """Begin with nobody in it."""
        self._taken = False

    @contextlib.contextmanager
    def entered(self, *, suspect: bool) -> Iterator[bool]:
        """Say whether a step may be begun now: a suspect where the place is free, which it takes; any other always."""
        if not suspect or self._taken:
            yield not suspect
            return
        self._taken = True
        try:
            yield True
        finally:
            self._taken = False
