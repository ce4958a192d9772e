"""How often somebody has come with a credential that does not hold.

Owns the counting, in this process. Does not know what a credential is. Who comes with one that holds is not counted, nor
ever refused for what others did: a stranger who guesses locks nobody out.

A token bucket each: a minute's worth of places, which come back one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

import structlog

log = structlog.get_logger(__name__)

WINDOW_S = 60.0
#: Beyond so many names at once, those longest quiet are forgotten: 100,000 take about 20 MB.
MAX_NAMES = 100_000


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float
    is_empty: bool = False


class FailedAttempts:
    """A minute's worth of failures for every address and every key id."""

    def __init__(self, *, per_minute: int) -> None:
        """Allow so many in a minute, all at once if need be."""
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, names: Sequence[str], *, now_s: float) -> bool:
        """Count a failure of each of the `names`; return whether one of them had too many before."""
        had_too_many = [self._is_too_many(name, now_s) for name in names]
        return any(had_too_many)

    def _is_too_many(self, name: str, now_s: float) -> bool:
        bucket = self._buckets.pop(name, None) or _Bucket(self._per_minute, now_s)
        self._buckets[name] = bucket
        if len(self._buckets) > MAX_NAMES:
            self._buckets.popitem(last=False)
        bucket.left = min(self._per_minute, bucket.left + (now_s - bucket.at_s) * self._per_minute / WINDOW_S)
        bucket.at_s = now_s
        was_empty, bucket.is_empty = bucket.is_empty, bucket.left < 1
        if not bucket.is_empty:
            bucket.left -= 1
        elif not was_empty:
            log.warning("too many credentials that do not hold", of=name, per_minute=self._per_minute)
        return bucket.is_empty


def name_of_address(host: str) -> str:
    """Return the name that an address is counted by: one subscriber has a whole /64 of IPv6."""
    try:
        address = ip_address(host)
    except ValueError:
        return f"address {host}"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return f"network {IPv6Network((address, 64), strict=False)}"
    return f"address {address}"
