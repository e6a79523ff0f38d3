"""A poll loop of one thread: who is to be called when a descriptor is ready."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
HUNG_UP: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Loop:
    """``handler(events)`` is called while its descriptor is watched and one of the events it waits for is there."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._events: dict[int, int] = {}

    def watch(self, fd: int, handler: Callable[[int], None], events: int = READ) -> None:
        """Begin; with no ``events`` it is only remembered, and not even its end is noticed."""
        self._handlers[fd] = handler
        self._events[fd] = 0
        self.change(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a watched descriptor; of one that is not watched any more this is no error."""
        before = self._events.get(fd)
        if before is None or before == events:
            return
        if not events:
            self._poll.unregister(fd)
        else:
            # register also modifies.
            self._poll.register(fd, events)
        self._events[fd] = events

    def leave(self, fd: int) -> None:
        """The inverse of :meth:`watch`, before the descriptor is closed; again is no error."""
        if self._events.pop(fd, 0):
            self._poll.unregister(fd)
        self._handlers.pop(fd, None)

    def turn(self, timeout: float | None) -> None:
        """Wait ``timeout`` seconds at most, and call whose descriptors are ready."""
        for fd, events in self._poll.poll(None if timeout is None else max(0, int(timeout * 1000 + 0.999))):
            # An earlier one of the same turn may have let go of it.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
