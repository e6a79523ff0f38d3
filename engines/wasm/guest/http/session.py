"""What one instance of a guest holds: its store, its handles, and how long it may still take."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

_HANDLES_MAX: Final = 20_000
# Milliseconds that poll(2) can be given; a longer wait begins anew.
_WAIT_MAX: Final = 3_600_000


class Err(Exception):
    """The function's ``result`` is the error ``value``."""

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)
        self.value = value


class Refused(Exception):
    """The guest broke a rule of an interface, or a limit: its instance ends here. The text is for the log."""


class Expired(Refused):
    """The time for the request is over."""


class Exited(Exception):
    """The guest ended its instance by ``wasi:cli/exit``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the guest exited with {code}")
        self.code = code


class Waits:
    """What a thread waits for: descriptors (poll(2) events) and the earliest moment (monotonic seconds)."""

    __slots__ = ("events", "until")

    def __init__(self) -> None:
        self.events: dict[int, int] = {}
        self.until: float | None = None

    def on(self, fd: int, events: int) -> None:
        self.events[fd] = self.events.get(fd, 0) | events

    def at(self, moment: float) -> None:
        if self.until is None or moment < self.until:
            self.until = moment


class Source(Protocol):
    """Something that becomes ready."""

    def ready(self) -> bool:
        """Whether it is; goes on with what can be done without waiting."""

    def await_in(self, waits: Waits) -> None:
        """Say what it waits for; nothing said means that only other sources can make it ready."""


class Mover(Protocol):
    """Something that goes on while the guest waits for something else: bytes on their way out."""

    def move(self) -> bool:
        """Do what can be done without waiting; whether something is left."""

    def await_in(self, waits: Waits) -> None:
        """Say what it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every instance sees. ``directories`` are descriptors of directories with their guest's names and whether
    they may be written to; ``trust`` is TLS for guests whose image knows no authorities (``ssl.SSLContext``)."""

    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    directories: tuple[tuple[int, str, bool], ...] = ()
    network: bool = True
    trust: Any = None


class Session:
    """One instance's side of the host. One thread uses it at a time.

    ``context`` is the address of its store's context, ``scratch`` that of memory for conversions. Handles are numbers
    in ``table``; ``movers`` go on while it waits; ``expires`` (monotonic seconds) is when a wait ends in
    :class:`Expired`; ``closing`` are let go at the end. ``calls`` counts what the guest asked of the host, for who
    watches whether it still does.
    """

    __slots__ = (
        "_last",
        "calls",
        "closing",
        "context",
        "expires",
        "failure",
        "movers",
        "output",
        "scratch",
        "surroundings",
        "table",
        "waiting",
    )

    def __init__(self, context: int, scratch: int, surroundings: Surroundings) -> None:
        self.context = context
        self.scratch = scratch
        self.surroundings = surroundings
        self.table: dict[int, Any] = {}
        self._last = 0
        self.movers: list[Mover] = []
        self.expires: float | None = None
        self.failure: BaseException | None = None
        self.output: dict[int, Any] = {}
        self.closing: list[Any] = []
        self.calls = 0
        self.waiting = False

    def hold(self, resource: Any) -> int:
        """A number for the resource.

        :raises Refused: the guest holds too many.
        """
        if len(self.table) >= _HANDLES_MAX:
            raise Refused(f"the guest holds {_HANDLES_MAX} handles")
        self._last = rep = self._last + 1
        self.table[rep] = resource
        return rep

    def dropped(self, rep: int) -> None:
        """The guest gave a handle up."""
        resource = self.table.pop(rep, None)
        if resource is not None:
            resource.drop()

    def wait(self, sources: Iterable[Source]) -> list[int]:
        """Block until at least one is ready; which ones are.

        :raises Expired: the session's time is over.
        :raises Refused: there is nothing that could ever make one ready.
        """
        sources = list(sources)
        while True:
            waits = Waits()
            if self.movers:
                self._move(waits)
            ready = [i for i, source in enumerate(sources) if source.ready()]
            if ready:
                return ready
            for source in sources:
                source.await_in(waits)
            self._block(waits)

    def _move(self, waits: Waits) -> None:
        for mover in self.movers:
            if mover.move():
                mover.await_in(waits)

    def _block(self, waits: Waits) -> None:
        if not waits.events and waits.until is None:
            raise Refused("the guest waits for what can never happen")
        now = time.monotonic()
        if self.expires is not None and now >= self.expires:
            raise Expired("the guest took too long")
        until = waits.until
        if self.expires is not None and (until is None or self.expires < until):
            until = self.expires
        poller = select.poll()
        for fd, events in waits.events.items():
            poller.register(fd, events)
        # Rounded up, so that a moment has come when the wait for it is over.
        self.waiting = True
        try:
            poller.poll(None if until is None else min(max(0, int((until - now) * 1000) + 1), _WAIT_MAX))
        finally:
            self.waiting = False

    def close(self) -> None:
        """Let go of everything the guest held."""
        for resource in self.closing:
            resource.close()
        self.closing.clear()
        self.table.clear()
        self.movers.clear()
        for line in self.output.values():
            line.finish()
        self.output.clear()
