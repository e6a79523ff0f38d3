"""Who may go on: one at a time for each pod, and everybody or one alone for a whole network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from forgeone_shim.deadline import Deadline


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Turns:
    """One lock for each sandbox that is being worked on."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._turns: dict[str, _Turn] = {}

    @contextmanager
    def hold(self, sandbox_id: str) -> Iterator[None]:
        """The sandbox is the caller's alone meanwhile."""
        with self._guard:
            turn = self._turns.setdefault(sandbox_id, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._guard:
                turn.users -= 1
                if not turn.users:
                    del self._turns[sandbox_id]


class Gate:
    """Many may be inside together, or one alone; whoever wants to be alone goes before those that come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting = 0
        self._alone = False

    @contextmanager
    def together(self, deadline: Deadline) -> Iterator[None]:
        """Beside others.

        :raises DeadlineExceeded: somebody was alone inside for too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._alone and not self._waiting, deadline.remaining()):
                deadline.check("while the network was busy collecting garbage")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """When the last of those that are inside has left."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._inside)
                self._alone = True
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
