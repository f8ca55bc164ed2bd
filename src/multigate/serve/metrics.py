"""What Prometheus is told: requests, rows and seconds, by model."""

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from multigate.serve.shared_metrics import SHARED

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts of one process; ``page`` shows them, or those of all processes that share a folder."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        self._requests = Counter(
            "multigate_requests", "Requests for predictions answered.", ("model", "door", "status"), registry=self._own
        )
        self._rows = Counter("multigate_rows", "Rows predicted.", ("model",), registry=self._own)
        self._seconds = Histogram(
            "multigate_seconds", "From a request's head to its answer.", ("model",), registry=self._own, buckets=SECONDS
        )

    def add(self, model: str, door: str, status: int, rows: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(model, door, str(status)).inc()
        self._seconds.labels(model).observe(seconds)
        if rows:
            self._rows.labels(model).inc(rows)

    def page(self) -> bytes:
        """All counts, in the text format of Prometheus."""
        if SHARED not in os.environ:
            return generate_latest(self._own)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
