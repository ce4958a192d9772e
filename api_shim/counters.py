"""What this process counts, for Prometheus.

Owns names and labels. No label holds a tenant or an id: the number of series stays what the table of routes makes it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Answers come in milliseconds; `Prefer: wait` and streams take as long as they take.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Counters:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "agent_exec_api_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "agent_exec_api_seconds",
            "From request to end of answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.readers = Gauge("agent_exec_api_live_readers", "Event streams and sockets open.", registry=self.registry)
