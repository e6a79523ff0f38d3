"""What rooms count and measure of the node itself, for whoever shows it: plain data, no library of metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OTHER: Final = "other"
"""What a label says of all that came after a :class:`Tally` was full."""
_MOST: Final = 512


class Kind(StrEnum):
    """How a figure moves: a counter only grows, and begins anew with the process."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric with all its values, by its labels' values in the order of ``labels``.

    Names are Prometheus': a counter's ends with ``_total``, a unit is a base unit and stands before that.
    """

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...]
    values: tuple[tuple[tuple[str, ...], float], ...]


Figures = Callable[[], Iterable[Figure]]
"""What a room has to tell, asked for at each scrape from any thread: quick, and without waiting for anything."""


def gauge(name: str, help: str, value: float) -> Figure:
    """A figure without labels."""
    return Figure(name, help, Kind.GAUGE, (), (((), value),))


class Tally:
    """A counter with labels. Thread-safe.

    What labels say may come from pods: the first few hundred combinations are counted, all later ones as one.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = name, help, tuple(labels)
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = {}

    def count(self, *labels: str) -> None:
        """Once more."""
        with self._lock:
            if labels not in self._counts and len(self._counts) >= _MOST:
                labels = (OTHER,) * len(self._labels)
            self._counts[labels] = self._counts.get(labels, 0) + 1

    def figure(self) -> Figure:
        """What there is so far."""
        with self._lock:
            return Figure(self._name, self._help, Kind.COUNTER, self._labels, tuple(self._counts.items()))
