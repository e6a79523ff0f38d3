"""How much containers have written, not measured more often than it is worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from forgeone_shim.runtime.views import FilesystemUsage

FRESH: Final = 10.0
"""Seconds for which a measurement is told again."""
STALE: Final = 60.0
"""Seconds after which one is not told any more; between the two it is renewed beside the call that asks."""
_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class _Measured:
    usage: FilesystemUsage
    at: float
    took: float

    def older_than(self, seconds: float) -> bool:
        # A layer of many files is measured less often: no more than a share of a processor goes there.
        return time.monotonic() - self.at > max(seconds, self.took / _SHARE)


class WritableLayers:
    """Thread-safe. Every answer says when it was measured."""

    def __init__(self, measure: Callable[[str], FilesystemUsage]) -> None:
        self._measure = measure
        self._lock = threading.Lock()
        self._known: dict[str, _Measured] = {}
        self._renewing: set[str] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layers")

    def usage(self, container_id: str) -> FilesystemUsage:
        """The usage of a container's writable layer."""
        known = self._known.get(container_id)
        if known is None or known.older_than(STALE):
            known = self._measured(container_id)
            with self._lock:
                self._known[container_id] = known
        elif known.older_than(FRESH):
            with self._lock:
                if container_id not in self._renewing:
                    self._renewing.add(container_id)
                    self._pool.submit(self._renew, container_id)
        return known.usage

    def forget(self, container_id: str) -> None:
        """It is gone."""
        with self._lock:
            self._known.pop(container_id, None)

    def _measured(self, container_id: str) -> _Measured:
        began = time.monotonic()
        usage = self._measure(container_id)
        ended = time.monotonic()
        return _Measured(usage, ended, ended - began)

    def _renew(self, container_id: str) -> None:
        try:
            measured = self._measured(container_id)
            with self._lock:
                if container_id in self._known:
                    self._known[container_id] = measured
        finally:
            with self._lock:
                self._renewing.discard(container_id)

    def close(self) -> None:
        """Measure no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
