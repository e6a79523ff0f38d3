"""Lists in pieces, for the Stream* verbs: no message of theirs comes near the size limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

ITEMS: Final = 500
"""Entries a message. The largest annotations Kubernetes admits are 256 KiB an object; usual entries are about 1 KiB."""


def chunks(items: Sequence[T], size: int = ITEMS) -> Iterator[Sequence[T]]:
    """Pieces of at least one entry; none for an empty list."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
