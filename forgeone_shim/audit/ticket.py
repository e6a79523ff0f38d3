"""What somebody who appended an entry holds: where it will be, and a way to wait until it is there for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from forgeone_shim.audit.entry import Entry
from forgeone_shim.deadline import Deadline


class Durable(Protocol):
    """The log's side of a ticket."""

    def wait(self, size: int, deadline: Deadline) -> None:
        """Return once the log's first ``size`` entries are on disk under a signed checkpoint."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """``index`` is the entry's place in the log. It counts once :meth:`wait` has returned."""

    index: int
    _log: Durable = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """What people are told: ``audit:17``."""
        return f"audit:{self.index}"

    def wait(self, deadline: Deadline) -> str:
        """Return :attr:`id` once the entry is durable.

        :raises Unavailable: the log cannot be written now; the entry is kept, and written when that ends.
        :raises DeadlineExceeded: it is not durable yet.
        """
        self._log.wait(self.index + 1, deadline)
        return self.id


class Log(Protocol):
    """The part of :class:`~forgeone_shim.audit.log.AuditLog` that those who write to it use."""

    def append(self, entry: Entry) -> Ticket:
        """Queue an entry; never blocks, never fails."""

    def barrier(self, deadline: Deadline) -> None:
        """Return once everything that was appended before this call is durable."""

    def require(self) -> None:
        """:raises Unavailable: nothing can be written now."""
