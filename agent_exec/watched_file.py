"""A file that others change while it is in use: read once, looked at again, and read again when it has changed.

Owns when it is looked at, and what holds when it is gone or broken. Does not know what stands in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from agent_exec.errors import SettingsInvalid

T = TypeVar("T")
log = logging.getLogger(__name__)

#: How often the file is looked at; a change holds within 5 s of being made (docs/contract.md).
LOOK_S = 1.0


class WatchedFile(Generic[T]):
    """What a file says now."""

    def __init__(self, path: Path | None, *, name: str, read: Callable[[Path], T], without: T) -> None:
        """Take the file's path; `read` makes of it what it says, or raises SettingsInvalid.

        `without` holds while there is no file; a file that `read` refuses changes nothing, for a slip of an editor must
        not lock everybody out.
        """
        self._path = path
        self._name = name
        self._read = read
        self._without = without
        self._content = without
        self._seen: tuple[int, ...] | None = None
        self._look_at_s = 0.0

    def content(self) -> T:
        """Return what the file said a second ago or later."""
        if self._path is not None and time.monotonic() >= self._look_at_s:
            self._look_at_s = time.monotonic() + LOOK_S
            self._look(self._path)
        return self._content

    def _look(self, path: Path) -> None:
        try:
            status = path.stat()
        except OSError as error:
            if self._seen is not None:
                log.error("The %s cannot be read: %s. Nobody is let in by it.", self._name, error)
            self._content, self._seen = self._without, None
            return
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._content = self._read(path)
        except SettingsInvalid as error:
            log.error("%s What it said before stays in force.", error)
