"""How a person or a supervisor ends one of the sandbox's commands: as one exception, so that everything is cleaned up.

Owns the signals. Only the first raises: an exception in the middle of the cleaning up would leave things half done.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Asked(BaseException):
    """Somebody asked this process to end. No Exception: nothing but the command itself is to catch it."""

    def __init__(self, number: int) -> None:
        """Keep what a shell would show as the exit code."""
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """From now on Ctrl-C, SIGTERM and a closed terminal raise `Asked` in the main thread, once."""
    for number in _SIGNALS:
        signal.signal(number, _raise)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals off while something is cleaned up."""
    before = {number: signal.signal(number, _ignore) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _ignore)
    raise Asked(number)


def _ignore(_number: int, _: FrameType | None) -> None:
    """Do nothing. SIG_IGN would be handed on to processes that are started meanwhile."""
