"""Joins callers that ask for the same thing at the same time, so that a kubelet's retry never meets itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self, deadline: Deadline) -> None:
        self.deadline = Deadline(0.0)
        self.deadline.extend(deadline)
        self.done = threading.Event()
        self.result: T | None = None
        self.error: BaseException | None = None


class _Late(Exception):
    """The joined work ran into a deadline that was not the joiner's."""

    def __init__(self, error: DeadlineExceeded) -> None:
        super().__init__()
        self.error = error


class Flights(Generic[T]):
    """At most one call a key is under way; whoever comes meanwhile gets its result or its error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight[T]] = {}

    def run(self, key: str, deadline: Deadline, work: Callable[[Deadline], T]) -> T:
        """Do ``work``, or wait for the one that does. ``work``'s deadline moves to the latest caller's."""
        while True:
            try:
                return self._once(key, deadline, work)
            except _Late as late:
                # The work gave up on its first caller's deadline in the moment that this one joined.
                if deadline.passed:
                    raise late.error from None

    def _once(self, key: str, deadline: Deadline, work: Callable[[Deadline], T]) -> T:
        with self._lock:
            flight = self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight(deadline)
            else:
                flight.deadline.extend(deadline)
        if not mine:
            return self._join(flight, key, deadline)
        try:
            result = flight.result = work(flight.deadline)
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()
        return result

    @staticmethod
    def _join(flight: _Flight[T], key: str, deadline: Deadline) -> T:
        if not flight.done.wait(deadline.remaining()):
            raise DeadlineExceeded(f"an earlier call for {key} is still under way")
        if isinstance(flight.error, DeadlineExceeded):
            raise _Late(flight.error)
        if flight.error is not None:
            raise flight.error
        return flight.result  # type: ignore[return-value]
