"""The worker's connection to its broker: tried again each second, however long Redis has been away.

Owns the pauses between two attempts, and how often the log hears of them. Celery's own pauses grow to half a minute, and a
worker would stand idle for as long after Redis is back.

    app = Celery(..., amqp=AMQP)
"""

# kombu and celery say that they are typed, and mostly are not:
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from celery.app import amqp
from kombu import connection

PAUSE_S = 1.0
#: A broker that is away is worth a line this often.
REMIND_S = 30.0


class Connection(connection.Connection):
    """kombu's connection."""

    def ensure_connection(
        self, errback: Callable[[Exception, float], None] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Connect, or wait until it is possible; as kombu's, with pauses that do not grow."""
        pauses = {"interval_start": PAUSE_S, "interval_step": 0, "interval_max": PAUSE_S}
        return super().ensure_connection(errback and thinned(errback), *args, **{**kwargs, **pauses})


class AMQP(amqp.AMQP):
    """Celery's way to its broker, by our connection."""

    Connection = Connection
    BrokerConnection = Connection


def thinned(errback: Callable[[Exception, float], None]) -> Callable[[Exception, float], None]:
    """Return a callback that calls `errback` at the first of many failures, and then every `REMIND_S`."""
    told_s: float | None = None

    def tell(error: Exception, pause_s: float) -> None:
        nonlocal told_s
        if told_s is None or monotonic() - told_s >= REMIND_S:
            told_s = monotonic()
            errback(error, pause_s)

    return tell
