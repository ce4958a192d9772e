"""How callbacks stand, for Prometheus: every shim gives the same, read from Redis at each scrape.

Owns names and labels. Does not know where the figures come from.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent_exec.callbacks.callbacks import Backlog


class CallbackMetrics(Collector):
    """One look at all tenants' callbacks."""

    def __init__(self, backlog: Backlog) -> None:
        """Take how they stand."""
        self._backlog = backlog

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        backlog = self._backlog
        for name, words, value in (
            ("waiting", "Callbacks that are sent at once or later.", backlog.waiting),
            ("sending", "Callbacks on their way.", backlog.sending),
            ("lag_seconds", "For how long the first callback is overdue.", backlog.lag_s),
        ):
            yield GaugeMetricFamily(f"agent_exec_callbacks_{name}", words, value=float(value))
        tries = CounterMetricFamily("agent_exec_callbacks_tries", "Tries, by what they came to.", labels=["outcome"])
        for outcome in ("delivered", "put_off", "dead"):
            tries.add_metric([outcome], backlog.outcomes.get(outcome, 0))
        yield tries
