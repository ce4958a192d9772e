"""A Lua script and one call of it, as values.

Owns how a `.lua` file becomes a script and how a call of it is described. Does not know how a call reaches Redis:
`store.py` runs calls, one at a time or many in a pipeline, from synchronous and asynchronous code alike. That is why
the ledger, the event log and the fair queue are written once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_INCLUDE = re.compile(r"^-- include: (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file, its includes expanded."""

    name: str
    source: str
    sha: str

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read `path`; a line `-- include: _file.lua` is replaced by that file beside it."""
        source = _INCLUDE.sub(lambda line: (path.parent / line[1]).read_text(), path.read_text())
        return cls(
            name=path.stem,
            source=source,
            sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        )


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of a script: what to send, and how to read the reply."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | bytes | int | float]
    parse: Callable[[Any], T]
