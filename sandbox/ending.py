"""How a person or a supervisor ends one of the sandbox's commands: as an exception, so that everything is cleaned up."""

from __future__ import annotations

import signal
from types import FrameType


class Asked(BaseException):
    """Somebody asked this process to end. No Exception: nothing but the command itself is to catch it."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """From now on Ctrl-C, SIGTERM and a closed terminal raise `Asked` in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _raise)


def _raise(number: int, _: FrameType | None) -> None:
    raise Asked(number)
