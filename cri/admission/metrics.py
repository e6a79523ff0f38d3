"""What ``/metrics`` tells: counts, times and dates, and no name of anything that was looked at."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from forgeone_shim.cluster import objects
from forgeone_shim.contract import manifest
from forgeone_shim.version import VERSION

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_KINDS: Final = frozenset({*manifest.TEMPLATES, objects.KIND})
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """Of one process; thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._reviews = Counter(
            "forgeone_admission_reviews",
            "Objects looked at; cause is what kind of thing refused one.",
            ("path", "kind", "allowed", "cause"),
            registry=self._registry,
        )
        self._faults = Counter(
            "forgeone_admission_faults",
            "Requests that got no answer, by HTTP status: the failure policy of the webhook decided.",
            ("path", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "forgeone_admission_review_seconds",
            "From the whole request to its answer.",
            ("path",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._expires = Gauge(
            "forgeone_admission_certificate_expiry_timestamp_seconds",
            "When the serving certificate ends.",
            registry=self._registry,
        )
        self._known = Gauge(
            "forgeone_admission_known",
            "Objects that reviews are decided by.",
            ("what",),
            registry=self._registry,
        )
        self._unusable = Gauge(
            "forgeone_admission_unusable",
            "Objects of which an earlier version, or none, is used, as this one cannot be.",
            ("what",),
            registry=self._registry,
        )
        self._interruptions = Counter(
            "forgeone_admission_watch_interruptions",
            "Times that the API server could not be followed.",
            ("what",),
            registry=self._registry,
        )
        Gauge("forgeone_admission_info", "The version, as a label.", ("version",), registry=self._registry).labels(
            VERSION
        ).set(1)

    def reviewed(self, path: str, kind: str, *, allowed: bool, cause: str, seconds: float) -> None:
        """An object was looked at."""
        kind = kind if kind in _KINDS else "other"
        self._reviews.labels(path, kind, str(allowed).lower(), cause).inc()
        self._seconds.labels(path).observe(seconds)

    def fault(self, path: str, code: int) -> None:
        """A request got no answer."""
        self._faults.labels(path, str(code)).inc()

    def certificate(self, expires: float) -> None:
        """The serving certificate ends then, in seconds since the epoch."""
        self._expires.set(expires)

    def known(self, what: str, count: int, unusable: int = 0) -> None:
        """How many objects are known now."""
        self._known.labels(what).set(count)
        self._unusable.labels(what).set(unusable)

    def interrupted(self, what: str) -> None:
        """The API server could not be followed."""
        self._interruptions.labels(what).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
