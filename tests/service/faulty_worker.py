"""The service's worker with a provider's client that does its worst: `celery -A tests.service.faulty_worker worker`.

Owns the faults that one step can do to its whole process. A query that begins with a fault's name gets it, before
the provider is asked; every other one is answered as ever. `TESTS_CLOCK_OFF_S` sets the clock that Python code reads.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

OFF_S = float(os.environ.get("TESTS_CLOCK_OFF_S", "0"))  # noqa: TID251 a test's own variable
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + OFF_S
time.time_ns = lambda: _time_ns() + int(OFF_S * 1e9)

from providers.chat_provider import ChatCall  # noqa: E402 the clock is set before anybody reads it
from tasks.celery import app  # noqa: E402

__all__ = ["app"]

#: More than any limit of a test leaves free.
TOO_MUCH_BYTES = 1 << 40
#: Matched in a time that doubles with each letter, under the interpreter's lock.
CATASTROPHE = (re.compile("(a+)+b"), "a" * 60)


def _die() -> None:
    os._exit(9)


def _spin() -> None:
    while True:
        pass


def _hold_the_lock() -> None:
    pattern, text = CATASTROPHE
    pattern.match(text)


def _eat_memory() -> None:
    bytearray(TOO_MUCH_BYTES)


FAULTS: dict[str, Callable[[], None]] = {
    "DIE": _die,
    "SPIN": _spin,
    "HOLD": _hold_the_lock,
    "EAT": _eat_memory,
}

_enter = ChatCall.__aenter__


async def _faulty(self: ChatCall) -> Any:
    word = str(self._request.messages[-1].content).partition(" ")[0]
    if word in FAULTS:
        FAULTS[word]()
    return await _enter(self)


ChatCall.__aenter__ = _faulty  # type: ignore[method-assign]
