"""How many event streams and sockets each tenant has open in this process.

Owns the count and its bound. It is this process's alone: no shared counter leaks when a process dies, and a fleet of n
shims lets in n times as many. Does not know what a stream is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from agent_exec.errors import TooManyStreams


class OpenStreams:
    """What is open."""

    def __init__(self, most: int) -> None:
        """Let each tenant have at most so many."""
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, tenant_id: str) -> Iterator[None]:
        """Count a stream of the tenant while the context lasts.

        Raises:
            TooManyStreams: it has as many as it may.
        """
        if self._open[tenant_id] >= self._most:
            raise TooManyStreams(
                f"You have {self._most} event streams and sockets open here, as many as you may; close some, then try again."
            )
        self._open[tenant_id] += 1
        try:
            yield
        finally:
            self._open[tenant_id] -= 1
            if not self._open[tenant_id]:
                del self._open[tenant_id]
