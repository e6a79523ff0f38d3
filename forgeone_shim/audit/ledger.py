"""What the state database knows of the log: how far it had come, and whether it was ever found damaged."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from forgeone_shim.audit.checkpoint import Checkpoint
from forgeone_shim.errors import FailedPrecondition

T = TypeVar("T")

KIND: Final = "audit"
MARK: Final = "mark"
DAMAGE: Final = "damage"
ACCEPTED: Final = "accepted"
_LONGEST: Final = 2000
_PATIENCE: Final = 10.0


class Store(Protocol):
    """The part of :class:`~forgeone_shim.state.store.StateStore` that is used."""

    def put(self, kind: str, key: str, doc: object) -> None:
        """Write or replace a document."""

    def replace(self, kind: str, key: str, doc: object, before: object) -> bool:
        """Write a document in the place of ``before``, if that is there."""

    def get(self, kind: str, key: str, type_: type[T]) -> T | None:
        """The document, or ``None``."""

    def delete(self, kind: str, key: str) -> None:
        """Forget a document."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the log had come when somebody was last told that an entry is durable; ``root`` in base64."""

    origin: str
    size: int
    root: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Mark:
        """That of a checkpoint."""
        return cls(checkpoint.origin, checkpoint.size, base64.b64encode(checkpoint.root).decode())


@dataclass(frozen=True, slots=True)
class Damage:
    """``reason`` is what was found, ``kept`` the directory that the damaged log was moved to."""

    reason: str
    kept: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """Damage that a log goes on with, as somebody has looked into it."""

    origin: str
    reasons: tuple[str, ...] = ()


class Ledger:
    """Thread-safe, as its store is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self) -> Mark | None:
        """How far the log had come."""
        return self._store.get(KIND, MARK, Mark)

    def save(self, mark: Mark, before: Sequence[Mark | None]) -> bool:
        """It has come so far, from one of ``before``; says whether nobody else wrote to it meanwhile."""
        # In the way of every call: one statement where it was the last of them.
        if before and self._store.replace(KIND, MARK, mark, before[-1]):
            return True
        if self.mark() not in before:
            return False
        self._store.put(KIND, MARK, mark)
        return True

    def damage(self) -> Damage | None:
        """What nobody has accepted yet."""
        return self._store.get(KIND, DAMAGE, Damage)

    def report(self, damage: Damage) -> None:
        """The log was found damaged; what was reported before, and not accepted, is not forgotten for it."""
        before = self.damage()
        if before is not None and before != damage:
            damage = Damage(f"{before.reason} ({before.kept}); then {damage.reason}"[-_LONGEST:], damage.kept)
        self._store.put(KIND, DAMAGE, damage)

    def begin(self) -> None:
        """Another log takes the place of the one that there was."""
        self._store.delete(KIND, MARK)

    def accept(self, origin: str, reasons: tuple[str, ...] = ()) -> None:
        """Somebody has looked at it. The log of that name goes on although it is damaged in these ways."""
        if reasons:
            self._store.put(KIND, ACCEPTED, Accepted(origin, (*self.accepted(origin), *reasons)))
        self._store.delete(KIND, DAMAGE)

    def accepted(self, origin: str) -> tuple[str, ...]:
        """In which ways the log of that name is known to be damaged."""
        found = self._store.get(KIND, ACCEPTED, Accepted)
        return found.reasons if found is not None and found.origin == origin else ()


def read_mark(database: Path) -> Mark | None:
    """The mark, by somebody who does not own the database: it is only read.

    :raises FailedPrecondition: it cannot be.
    """
    if not database.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)) as found:
            row = found.execute("SELECT doc FROM docs WHERE kind=? AND key=?", (KIND, MARK)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Mark)
    except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"the database {database} cannot be read: {error}") from error
