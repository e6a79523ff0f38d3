"""What happens to pods and containers, told to whoever listens: in order, with nothing missing, or not at all.

Each :class:`Feed` has a queue of its own. A listener that falls behind by more than a queue's length gets what was
queued and then an error, never a gap that it cannot see.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.lifecycle.machine import Lifecycle, Transition
from forgeone_shim.runtime.views import ContainerView, SandboxView

QUEUE: Final = 4096
"""Happenings a listener may be behind: a thousand containers created, started, stopped and removed in one burst."""


@dataclass(frozen=True, slots=True)
class Happening:
    """A transition, and the pod as it was at that moment: after the step, of what is removed before it."""

    transition: Transition
    sandbox: SandboxView | None
    containers: tuple[ContainerView, ...]


class Feed:
    """One listener's queue, iterated by one thread; :meth:`close` may be called by any and as often as one likes."""

    def __init__(self, limit: int, on_close: Callable[[Feed], None]) -> None:
        self._limit, self._on_close = limit, on_close
        self._changed = threading.Condition()
        self._queue: deque[Happening] = deque()
        self._lost = self._closed = False

    def put(self, happening: Happening) -> None:
        """Queue it, or, where the queue is full, let the feed end after what is queued."""
        with self._changed:
            if self._lost or self._closed:
                return
            if len(self._queue) >= self._limit:
                self._lost = True
            else:
                self._queue.append(happening)
            self._changed.notify()

    def __iter__(self) -> Iterator[Happening]:
        """Every happening, waiting for the next, until :meth:`close`.

        :raises ResourceExhausted: after the last one queued, when more has happened than the queue holds.
        """
        while True:
            with self._changed:
                while not (self._queue or self._closed or self._lost):
                    self._changed.wait()
                if self._closed:
                    return
                if not self._queue:
                    break
                happening = self._queue.popleft()
            yield happening
        raise ResourceExhausted(
            f"the listener is more than {self._limit} events behind",
            fix="list pods and containers, then listen again",
        )

    def close(self) -> None:
        """End the iteration and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._on_close(self)


class EventHub:
    """Hands each step of the lifecycle to every feed, in the thread that makes it."""

    def __init__(self, lifecycle: Lifecycle, snapshot: Callable[[Transition], Happening], limit: int = QUEUE) -> None:
        """``snapshot`` must take no lock that a step is made under."""
        self._snapshot, self._limit = snapshot, limit
        self._lock = threading.Lock()
        self._feeds: tuple[Feed, ...] = ()
        lifecycle.subscribe(self._tell)

    def listen(self) -> Feed:
        """Everything that happens from now on."""
        feed = Feed(self._limit, self._forget)
        with self._lock:
            self._feeds = (*self._feeds, feed)
        return feed

    def _tell(self, transition: Transition) -> None:
        # The picture is taken under the lock as well: a later event must never show an older state.
        with self._lock:
            if not self._feeds:
                return
            happening = self._snapshot(transition)
            for feed in self._feeds:
                feed.put(happening)

    def _forget(self, feed: Feed) -> None:
        with self._lock:
            self._feeds = tuple(one for one in self._feeds if one is not feed)
