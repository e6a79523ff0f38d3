"""Pulls under way: whoever asks for the same thing shares one, and the last to lose interest ends it."""

from __future__ import annotations

import errno
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    ForgeError,
    InternalError,
    ResourceExhausted,
    Unavailable,
    syscall_error,
)
from forgeone_shim.registry.model import Credentials, Image, LayerProgress
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.settings import Settings
from forgeone_shim.registry.transport import Cancelled, Session, TlsContexts
from forgeone_shim.registry.vetting import Vetting

Progress = Callable[[LayerProgress], None]
# How long a caller whose deadline passed waits for its pull to be undone before it is told so.
_UNDO_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. Two that are equal are one pull.

    :param wasm: of a name that stands for two images, the WebAssembly one is meant.
    :param namespace: for whose pods it is judged, ``""`` where it makes no difference.
    :param vetting: by what it is judged; ``None``: it is not.
    """

    reference: Reference
    auth: Credentials | None
    wasm: bool
    namespace: str
    vetting: Vetting | None


class Flight:
    """A pull under way and everyone who waits for it."""

    def __init__(self, order: Order, settings: Settings, deadline: Deadline, contexts: TlsContexts) -> None:
        self.order, self.settings = order, settings
        self.session = Session(contexts, Deadline.after(deadline.remaining()), settings.config.progress_timeout)
        self.passengers = 0
        self.listeners: list[Progress] = []
        self._landed = False
        self._news = threading.Condition()
        self.image: Image | None = None
        self.error: ForgeError | None = None

    def tell(self, progress: LayerProgress) -> None:
        """Tell everyone who asked how a layer is doing."""
        for listener in tuple(self.listeners):
            listener(progress)

    def land(self) -> None:
        """It is over; ``image`` or ``error`` is set."""
        with self._news:
            self._landed = True
            self._news.notify_all()

    def wait(self, deadline: Deadline) -> bool:
        """Whether it has landed, once it has or ``deadline`` has passed or was abandoned."""
        deadline.listen(self._wake)
        try:
            with self._news:
                self._news.wait_for(lambda: self._landed or deadline.passed, deadline.remaining())
                return self._landed
        finally:
            deadline.ignore(self._wake)

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def outcome(self) -> Image:
        """The image, or the failure, once landed."""
        if self.error is not None:
            # One failure, several callers: each raises its own, so that none's traceback grows into another's.
            raise _again(self.error)
        if self.image is None:
            raise InternalError(f"pull of {self.order.reference} ended without a result")
        return self.image


class Flights:
    """All pulls of this process. Thread-safe; ``pull`` does the work of one, in a thread of its own."""

    def __init__(self, contexts: TlsContexts, pull: Callable[[Flight], Image]) -> None:
        self._contexts, self._pull = contexts, pull
        self._lock = threading.Lock()
        self._flights: dict[Order, Flight] = {}

    def take(self, order: Order, settings: Settings, deadline: Deadline, progress: Progress | None) -> Image:
        """The image that is asked for, by a pull that is under way or a new one. Other threads call ``progress``.

        :raises DeadlineExceeded: the deadline passed or was abandoned; where nobody else waits the pull is undone.
        :raises ForgeError: what went wrong with the pull.
        """
        reference = order.reference
        while True:
            deadline.check(f"before the pull of {reference}")
            flight, joined = self._board(order, settings, deadline, progress)
            try:
                landed = flight.wait(deadline)
            finally:
                last = self._leave(flight, progress)
            if not landed:
                if last:
                    flight.wait(Deadline.after(_UNDO_SECONDS))
                deadline.check(f"while pulling {reference}")
                raise DeadlineExceeded(f"deadline passed while pulling {reference}")
            if not (isinstance(flight.error, DeadlineExceeded) and joined and not deadline.passed):
                return flight.outcome()
            # It ran into the deadline of those who were there before us.

    def close(self) -> None:
        """End all of them; each has been undone when this returns."""
        with self._lock:
            flights = list(self._flights.values())
        for flight in flights:
            flight.session.cancel()
        for flight in flights:
            flight.wait(NEVER)

    def _board(
        self, order: Order, settings: Settings, deadline: Deadline, progress: Progress | None
    ) -> tuple[Flight, bool]:
        """The pull that answers this call, and whether it was under way before."""
        with self._lock:
            flight = self._flights.get(order)
            joined = flight is not None
            if flight is None:
                flight = Flight(order, settings, deadline, self._contexts)
                threading.Thread(target=self._fly, args=(flight,), name="pull", daemon=True).start()
                # Not before: without a thread nobody would ever take it out.
                self._flights[order] = flight
            else:
                flight.session.deadline.extend(deadline)
            flight.passengers += 1
            if progress is not None:
                flight.listeners.append(progress)
        return flight, joined

    def _leave(self, flight: Flight, progress: Progress | None) -> bool:
        """One caller less; the last one to leave ends the pull. Says whether this was the last."""
        with self._lock:
            flight.passengers -= 1
            if progress is not None:
                flight.listeners.remove(progress)
            last = flight.passengers == 0
            if last and self._flights.get(flight.order) is flight:
                del self._flights[flight.order]
        if last:
            flight.session.cancel()
        return last

    def _fly(self, flight: Flight) -> None:
        """The thread of one pull."""
        try:
            flight.image = self._pull(flight)
        except Exception as error:
            flight.error = explained(error, f"pull of {flight.order.reference}")
        finally:
            flight.session.close()
            with self._lock:
                if self._flights.get(flight.order) is flight:
                    del self._flights[flight.order]
            flight.land()


def explained(error: Exception, what: str) -> ForgeError:
    """What a caller is told of a failure of ``what``."""
    match error:
        case ForgeError():
            return error
        case Cancelled():
            return Unavailable(f"{what} was ended", fix="do it again")
        case OSError():
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return (
                ResourceExhausted(f"{what}: {error.strerror}") if full else syscall_error("pull", error.filename, error)
            )
        case _:
            return InternalError(f"{what} failed: {_place(error)}")


def _place(error: BaseException) -> str:
    """An unforeseen error's type and line. Its traceback stays here: frames of a pull hold credentials."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"


def _again(error: ForgeError) -> ForgeError:
    copy = error.__class__.__new__(error.__class__)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    return copy
