"""Records in memory, each with its locks, found by id, unique prefix or key; every change is stored first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InvalidInput, NotFound
from forgeone_shim.state.store import StateStore


class Record(Protocol):
    """What a table holds."""

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""

    @property
    def key(self) -> str:
        """The caller's name for it."""


R = TypeVar("R", bound=Record)


class Entry(Generic[R]):
    """One record and its locks. ``work`` serialises long operations, :meth:`change` is short and atomic."""

    def __init__(self, record: R, store: Callable[[R], None]) -> None:
        self.record = record
        self.work = threading.RLock()
        self.state = threading.RLock()
        self.ended = threading.Event()
        self.pid = 0
        self.dropped = False
        # What makes a checkpoint under way give up. Set, and called, under ``state``.
        self.break_off: Callable[[], None] | None = None
        # The view last made of it, after what it was made of: where nothing has changed everybody sees the same one.
        self.shown: tuple[R, int, bool, Any] | None = None
        self._store = store

    @contextmanager
    def working(self, deadline: Deadline) -> Iterator[None]:
        """Hold ``work``, waiting for it no longer than the caller waits for an answer."""
        left = deadline.remaining()
        if not self.work.acquire(timeout=-1 if left is None else left):
            raise DeadlineExceeded(f"another call for {self.record.id[:13]} is still under way")
        try:
            yield
        finally:
            self.work.release()

    def change(self, **fields: Any) -> R:
        """Replace fields of the record: stored, then visible. A dropped record is not stored again."""
        with self.state:
            record: R = replace(self.record, **fields)  # type: ignore[type-var]
            if not self.dropped:
                self._store(record)
            self.record = record
            return record


class Table(Generic[R]):
    """All records of one kind."""

    def __init__(self, store: StateStore, kind: str, noun: str, type_: type[R]) -> None:
        self._store, self._kind, self._noun = store, kind, noun
        self._lock = threading.Lock()
        self._entries: dict[str, Entry[R]] = {}
        self._ids: dict[str, str] = {}
        for _, record in store.items(kind, type_):
            self._remember(record)

    def _save(self, record: R) -> None:
        self._store.put(self._kind, record.id, record)

    def _remember(self, record: R) -> Entry[R]:
        entry = Entry(record, self._save)
        with self._lock:
            self._entries[record.id] = entry
            self._ids[record.key] = record.id
        return entry

    def add(self, record: R) -> Entry[R]:
        """Store a new record, then show it."""
        try:
            self._save(record)
        except BaseException:
            # An error may come after the commit.
            with suppress(Exception):
                self._store.delete(self._kind, record.id)
            raise
        return self._remember(record)

    def drop(self, entry: Entry[R]) -> R:
        """Forget a record, in the store first; returns it as it was last."""
        record = entry.record
        with entry.state:
            entry.dropped = True
            self._store.delete(self._kind, record.id)
        with self._lock:
            self._entries.pop(record.id, None)
            if self._ids.get(record.key) == record.id:
                del self._ids[record.key]
        return record

    def by_key(self, key: str) -> Entry[R] | None:
        """The newest record of that key."""
        with self._lock:
            id_ = self._ids.get(key)
            return None if id_ is None else self._entries.get(id_)

    def has(self, id_: str) -> bool:
        """Whether there is a record of exactly that id."""
        return id_ in self._entries

    def find(self, id_: str) -> Entry[R]:
        """By id or unique prefix; NotFound, or InvalidInput where the prefix fits several."""
        if not id_:
            raise InvalidInput(f"{self._noun}_id", "is empty")
        entry = self._entries.get(id_)
        if entry is not None:
            return entry
        with self._lock:
            found = [e for known, e in self._entries.items() if known.startswith(id_)]
        if len(found) > 1:
            raise InvalidInput(f"{self._noun}_id", f"{id_!r} is the beginning of {len(found)} ids")
        if not found:
            raise NotFound(self._noun, id_)
        return found[0]

    def all(self) -> list[Entry[R]]:
        """Every entry, oldest first."""
        with self._lock:
            return list(self._entries.values())
