"""How many calls there were, how they ended, and how long they took."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

# A status is told in a millisecond, a container started in fifty, an image pulled in minutes.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Calls:
    """An observer of the server's. Thread-safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "forgeone_cri_requests", "Calls on the CRI socket that have ended.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "forgeone_cri_request_duration_seconds",
            "How long calls took that are answered with one message.",
            ("method",),
            buckets=BUCKETS,
            registry=registry,
        )

    def __call__(self, method: str, code: str, seconds: float | None) -> None:
        """A call has ended; ``seconds`` is ``None`` for a stream, which lasts as long as its client likes."""
        self._ended.labels(method, code).inc()
        if seconds is not None:
            self._seconds.labels(method).observe(seconds)
