"""A numbered, bounded record of what reached a neighbour.

Owns the numbers and the bound, and how a canary reads. Does not know what an entry is, nor HTTP.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

#: Enough for the largest benchmark; entries are small, so tens of megabytes at most.
KEPT_ENTRIES = 50_000

#: A word that a test puts into one tenant's texts; in another tenant's it is a leak.
_CANARY = re.compile(rb"canary-[a-z0-9]+")

Entry = TypeVar("Entry")


def _any(_: object) -> bool:
    return True


def canaries_in(body: bytes) -> list[str]:
    """Return the canaries of a text, each once, in the order of the alphabet."""
    return sorted({found.decode() for found in _CANARY.findall(body)})


class Journal(Generic[Entry]):
    """Entries numbered from 1 without a gap; the oldest fall out."""

    def __init__(self, *, keep: int = KEPT_ENTRIES) -> None:
        """Begin empty."""
        self.last = 0
        self._entries: deque[tuple[int, Entry]] = deque(maxlen=keep)
        self._news = asyncio.Event()

    def add(self, entry: Entry) -> int:
        """Append `entry`, wake whoever waits, and return its number."""
        self.last += 1
        self._entries.append((self.last, entry))
        self._news.set()
        self._news = asyncio.Event()
        return self.last

    def after(self, number: int, *, fits: Callable[[Entry], bool] = _any) -> list[tuple[int, Entry]]:
        """Return the kept entries past `number` that fit, oldest first, with their numbers."""
        found = []
        for place, entry in reversed(self._entries):
            if place <= number:
                break
            if fits(entry):
                found.append((place, entry))
        return found[::-1]

    async def wait_after(
        self, number: int, *, within_s: float, fits: Callable[[Entry], bool] = _any
    ) -> list[tuple[int, Entry]]:
        """Do as `after`, but wait up to `within_s` while nothing fits."""
        found = self.after(number, fits=fits)
        seen = self.last
        try:
            async with asyncio.timeout(within_s):
                while not found:
                    await self._news.wait()
                    found = self.after(max(number, seen), fits=fits)
                    seen = self.last
        except TimeoutError:
            pass
        return found
