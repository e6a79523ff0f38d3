"""The one database: small JSON documents by kind and key, in SQLite (WAL).

What is written here is written before it is acknowledged. Anything that the kernel can tell (pids, mounts, namespaces)
is looked up instead and never stored. Several processes may have the same database open.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from forgeone_shim.errors import FailedPrecondition

T = TypeVar("T")

QUARANTINE: Final = "unreadable/"
"""Begins the kind of documents that could not be read: kept for people to look at, in nobody's way."""

# A commit must survive the death of this process, not of the host: after a reboot no container is left to describe, and
# images are checked against their layers. WAL with NORMAL gives that without an fsync in the way of a pod.
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000", "wal_autocheckpoint=2000")
_SCHEMA = """CREATE TABLE IF NOT EXISTS docs (
    kind TEXT NOT NULL, key TEXT NOT NULL, doc BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID"""


class StateStore:
    """Documents are anything msgspec can encode (frozen dataclasses here). Thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        # Containers' environments are in it. SQLite gives its -wal and -shm files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._lock = threading.RLock()
        try:
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}")
            self._db.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise FailedPrecondition(
                f"the database {path} cannot be used: {error}",
                fix="restore it, or move it away: then this node's pods are removed and its images pulled anew",
            ) from error

    def put(self, kind: str, key: str, doc: object) -> None:
        """Write or replace a document."""
        blob = msgspec.json.encode(doc)
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO docs VALUES (?,?,?)", (kind, key, blob))

    def insert(self, kind: str, key: str, doc: object) -> bool:
        """Write a document unless its key is taken; says whether it was written. Atomic across processes."""
        blob = msgspec.json.encode(doc)
        with self._lock:
            return self._db.execute("INSERT OR IGNORE INTO docs VALUES (?,?,?)", (kind, key, blob)).rowcount == 1

    def get(self, kind: str, key: str, type_: type[T]) -> T | None:
        """The document, or ``None``."""
        with self._lock:
            row = self._db.execute("SELECT doc FROM docs WHERE kind=? AND key=?", (kind, key)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=type_)

    def delete(self, kind: str, key: str) -> None:
        """Forget a document; a missing one is no error."""
        with self._lock:
            self._db.execute("DELETE FROM docs WHERE kind=? AND key=?", (kind, key))

    def items(self, kind: str, type_: type[T]) -> list[tuple[str, T]]:
        """Every document of a kind, by key. One that cannot be read is set aside and logged, and holds up no other."""
        with self._lock:
            rows = self._db.execute("SELECT key, doc FROM docs WHERE kind=? ORDER BY key", (kind,)).fetchall()
        found = []
        for key, doc in rows:
            try:
                found.append((key, msgspec.json.decode(doc, type=type_)))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._set_aside(kind, key, error)
        return found

    def _set_aside(self, kind: str, key: str, error: Exception) -> None:
        # Never the document itself: environments hold secrets.
        structlog.get_logger("state").error("unreadable document set aside", kind=kind, key=key, error=str(error))
        with self._lock:
            self._db.execute("UPDATE OR REPLACE docs SET kind=? WHERE kind=? AND key=?", (QUARANTINE + kind, kind, key))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several reads and writes as one; other threads and processes wait. Rolled back when the block raises."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the database; a later call fails."""
        with self._lock:
            self._db.close()
