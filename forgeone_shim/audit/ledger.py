"""What the state database knows of the log: how far it had come, and whether it was ever found damaged."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from forgeone_shim.audit.checkpoint import Checkpoint

T = TypeVar("T")

KIND: Final = "audit"
MARK: Final = "mark"
DAMAGE: Final = "damage"


class Store(Protocol):
    """The part of :class:`~forgeone_shim.state.store.StateStore` that is used."""

    def put(self, kind: str, key: str, doc: object) -> None:
        """Write or replace a document."""

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


class Ledger:
    """Thread-safe, as its store is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self) -> Mark | None:
        """How far the log had come."""
        return self._store.get(KIND, MARK, Mark)

    def save(self, mark: Mark) -> None:
        """It has come so far."""
        self._store.put(KIND, MARK, mark)

    def damage(self) -> Damage | None:
        """What nobody has accepted yet."""
        return self._store.get(KIND, DAMAGE, Damage)

    def report(self, damage: Damage) -> None:
        """The log was found damaged."""
        self._store.put(KIND, DAMAGE, damage)

    def accept(self) -> None:
        """Somebody has looked at it."""
        self._store.delete(KIND, DAMAGE)
