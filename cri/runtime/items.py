"""The entries of lists, made once for each state of what they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar


class View(Protocol):
    """Never changes: what is about another state is another view."""

    @property
    def id(self) -> str:
        """Its pod's or container's."""


V = TypeVar("V", bound=View)
M = TypeVar("M")


class Items(Generic[V, M]):
    """Remembers the message made of each view that was in the last list. Thread-safe; messages must not be changed."""

    def __init__(self, make: Callable[[V], M]) -> None:
        self._make = make
        self._made: dict[str, tuple[V, M]] = {}

    def of(self, views: Iterable[V]) -> list[tuple[V, M]]:
        """Each of all views with its message."""
        made, found = self._made, {}
        for view in views:
            pair = made.get(view.id)
            found[view.id] = (view, self._make(view)) if pair is None or pair[0] is not view else pair
        # What is not there any more is forgotten with the old dictionary.
        self._made = found
        return list(found.values())
