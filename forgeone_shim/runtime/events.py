"""What happens to pods and containers, told to whoever listens: in order, with nothing missing, or not at all.

Each :class:`Feed` has a queue of its own. A listener that falls behind by more than a queue's length gets what was
queued and then an error, never a gap that it cannot see.

CRI has no cursor, and a kubelet whose stream breaks lists first and listens after: what happens between the two would
be lost to it. What a listener has not had when it goes is therefore kept for a while, with what happens next, and the
next one begins there. So is what happens from the process's start on, for those who listened to the one before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.lifecycle.machine import Lifecycle, Transition
from forgeone_shim.runtime.views import ContainerView, SandboxView

QUEUE: Final = 4096
"""Happenings a listener may be behind: a thousand containers created, started, stopped and removed in one burst."""

RESUME: Final = 60.0
"""Seconds in which the next listener goes on where one that went had come to."""

_KEPT: Final = 4


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
                happening = self._queue[0]
            yield happening
            # Only now is it known to be out: a listener that went in the middle of it leaves it to the next one.
            with self._changed:
                if not self._closed:
                    self._queue.popleft()
        raise ResourceExhausted(
            f"the listener is more than {self._limit} events behind",
            fix="list pods and containers, then listen again",
        )

    @property
    def lost(self) -> bool:
        """Whether something has happened that the queue had no room for."""
        with self._changed:
            return self._lost

    def close(self) -> None:
        """End the iteration and take no more; what was not taken is left to the next listener."""
        self._on_close(self)

    def end(self) -> Feed | None:
        """Close it; a feed that begins where this one had come to, or now where that would have a gap.

        :return: ``None`` when it was closed before.
        """
        with self._changed:
            if self._closed:
                return None
            self._closed = True
            self._changed.notify_all()
            rest = Feed(self._limit, self._on_close)
            rest._queue.extend(() if self._lost else self._queue)
            return rest


class EventHub:
    """Hands each step of the lifecycle to every feed, in the thread that makes it."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        snapshot: Callable[[Transition], Happening],
        limit: int = QUEUE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``snapshot`` must take no lock that a step is made under."""
        self._snapshot, self._limit, self._clock = snapshot, limit, clock
        self._lock = threading.Lock()
        self._feeds: tuple[Feed, ...] = ()
        # Feeds that wait for a listener, until when; the last one to be left is the first to be taken.
        self._kept: tuple[tuple[Feed, float], ...] = ((Feed(limit, self._leave), clock() + RESUME),)
        self._told = 0
        lifecycle.subscribe(self._tell)

    def listen(self) -> Feed:
        """Everything that happens from now on, after what happened since a listener went, if that is not long ago."""
        with self._lock:
            self._forget_old()
            *kept, (feed, _) = self._kept or ((Feed(self._limit, self._leave), 0.0),)
            self._kept = tuple(kept)
            self._feeds = (*self._feeds, feed)
        return feed

    def _tell(self, transition: Transition) -> None:
        # The picture is taken under the lock as well: a later event must never show an older state.
        with self._lock:
            self._forget_old()
            if not (self._feeds or self._kept):
                return
            # Threads wait here for each other, and clocks are set back: listeners take what is dated before for old.
            self._told = max(transition.at, self._told + 1)
            happening = self._snapshot(replace(transition, at=self._told))
            for feed in (*self._feeds, *(one for one, _ in self._kept)):
                feed.put(happening)

    def _leave(self, feed: Feed) -> None:
        with self._lock:
            left = feed.end()
            self._feeds = tuple(one for one in self._feeds if one is not feed)
            if left is not None:
                self._kept = (*self._kept, (left, self._clock() + RESUME))[-_KEPT:]

    def _forget_old(self) -> None:
        if self._kept:
            now = self._clock()
            self._kept = tuple((feed, until) for feed, until in self._kept if now < until and not feed.lost)
