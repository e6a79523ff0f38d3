"""A point in time by which a caller wants its answer, handed down through every blocking step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from forgeone_shim.errors import DeadlineExceeded


class Deadline:
    """Seconds are on the monotonic clock; ``at=None`` never passes.

    A deadline may be moved later (:meth:`extend`) when another caller joins the same piece of work. It passes at once
    when its caller goes away (:meth:`abandon`).
    """

    __slots__ = ("_abandoned", "_at", "_listeners")

    def __init__(self, at: float | None = None) -> None:
        self._at = at
        self._abandoned = False
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The deadline ``seconds`` from now; ``None`` is no deadline."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    def extend(self, other: Deadline) -> None:
        """Move this deadline to the later of the two."""
        mine, theirs = self._at, other._at
        self._at = None if mine is None or theirs is None else max(mine, theirs)

    def abandon(self) -> None:
        """Nobody waits any more: the deadline has passed, and whoever listens is told."""
        self._at, self._abandoned = time.monotonic(), True
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called by :meth:`abandon`, perhaps twice; at once when that has been."""
        # In this order, and abandon() in the other, no lock is needed.
        self._listeners.append(listener)
        if self._abandoned:
            listener()

    def ignore(self, listener: Callable[[], None]) -> None:
        """The inverse of :meth:`listen`."""
        self._listeners.remove(listener)

    @contextmanager
    def within(self, seconds: float | None = None) -> Iterator[Deadline]:
        """One that passes ``seconds`` from now at the latest, and with this one, but can be abandoned by itself."""
        inner = Deadline.after(self.remaining(seconds))
        self.listen(inner.abandon)
        try:
            yield inner
        finally:
            self.ignore(inner.abandon)

    def remaining(self, at_most: float | None = None) -> float | None:
        """Seconds left, never negative and never above ``at_most``; ``None`` where neither bounds it."""
        at = self._at  # read once: another thread may extend it
        if at is None:
            return at_most
        left = max(0.0, at - time.monotonic())
        return left if at_most is None else min(left, at_most)

    @property
    def passed(self) -> bool:
        """Whether the caller has stopped waiting."""
        at = self._at
        return at is not None and time.monotonic() >= at

    def check(self, stage: str) -> None:
        """Raise :class:`DeadlineExceeded`, naming ``stage``, once the deadline has passed."""
        if self.passed:
            raise DeadlineExceeded(f"{'the caller went away' if self._abandoned else 'deadline passed'} {stage}")


class Punctual:
    """A file that is read no further once a deadline has passed: what is in it may be larger than it takes on disk."""

    __slots__ = ("_deadline", "_file", "_stage")

    def __init__(self, file: IO[bytes], deadline: Deadline, stage: str) -> None:
        self._file, self._deadline, self._stage = file, deadline, stage

    def read(self, size: int = -1) -> bytes:
        """:raises DeadlineExceeded: it has passed."""
        self._deadline.check(self._stage)
        return self._file.read(size)


NEVER = Deadline()
