"""How the notifier stands, for Prometheus: every shim gives the same, read from Redis at each scrape.

Owns names and labels. Does not know where the figures come from.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent_exec.notifier_state import NotifierState


class NotifierMetrics(Collector):
    """One look at the notifier."""

    def __init__(self, state: NotifierState) -> None:
        """Take how it stands."""
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield each metric; the counters begin anew with each process that becomes active."""
        state = self._state
        for name, words, value in (
            ("active", "Whether a notifier is active.", state.is_active),
            ("connected", "Whether it is connected to the orchestrator.", state.is_connected),
            ("lag_seconds", "Age of the oldest event that was not sent.", state.lag_s),
            ("unsent_executions", "Executions with events that were not sent.", state.unsent),
            ("unacked_executions", "Executions with events that were not acknowledged.", state.unacked),
        ):
            yield GaugeMetricFamily(f"agent_exec_notifier_{name}", words, value=float(value))
        if (report := state.report) is not None:
            yield CounterMetricFamily("agent_exec_notifier_frames", "Frames sent.", value=report.sent)
            yield CounterMetricFamily("agent_exec_notifier_connections", "WebSockets opened.", value=report.connections)
            ignored = CounterMetricFamily("agent_exec_notifier_ignored", "Messages ignored.", labels=["reason"])
            for reason, count in report.ignored.items():
                ignored.add_metric([reason], count)
            yield ignored
