"""What is ordered to go wrong with a provider's next answers, as JSON: `[{"status": 503, "times": 3}]`.

Owns the order of faults and their number. Does not know how an answer is made, nor how one breaks.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A refusal with `status`; or with 200 a stream that just ends after so many tokens. `times` null is for ever."""

    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    retry_after_s: Annotated[int, msgspec.Meta(ge=0)] = 0
    cut_after_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1


class Faults:
    """Those that are still to come."""

    def __init__(self, ordered: list[Fault] | None = None) -> None:
        """Take them, the next one first."""
        self._left = [(fault, fault.times) for fault in ordered or []]

    def next(self) -> Fault | None:
        """Return what is wrong with the next answer; None for nothing."""
        if not self._left:
            return None
        fault, times = self._left[0]
        if times is not None:
            self._left[0] = fault, times - 1
            if times == 1:
                del self._left[0]
        return fault


def read_faults(body: bytes) -> Faults:
    """Return the faults in `body`.

    Raises:
        ValueError: not a list of them.
    """
    return Faults(msgspec.json.decode(body, type=list[Fault]))
