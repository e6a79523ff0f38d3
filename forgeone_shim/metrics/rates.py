"""How many processors a counter of processor time amounts to."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

SPAN: Final = 1_000_000_000
"""Nanoseconds that lie between two readings at least: two askers do not spoil each other's rate."""


@dataclass(frozen=True, slots=True)
class _Reading:
    at: int
    cpu: int
    nano_cores: int | None


class Rates:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, _Reading] = {}

    def nano_cores(self, id_: str, at: int, cpu: int | None) -> int | None:
        """Nanoseconds of processor time a second since an earlier reading; ``None`` at the first one."""
        if cpu is None:
            return None
        with self._lock:
            last = self._last.get(id_)
            if last is not None and at - last.at < SPAN:
                return last.nano_cores
            rate = None if last is None or cpu < last.cpu else (cpu - last.cpu) * SPAN // (at - last.at)
            self._last[id_] = _Reading(at, cpu, rate)
            return rate

    def forget(self, id_: str) -> None:
        """It is gone."""
        with self._lock:
            self._last.pop(id_, None)
