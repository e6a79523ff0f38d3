"""The one database: small JSON documents by kind and key, in SQLite (WAL).

What is written here is written before it is acknowledged. Anything that the kernel can tell (pids, mounts, namespaces)
is looked up instead and never stored. Several processes may have the same database open.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from forgeone_shim.errors import FailedPrecondition

T = TypeVar("T")

QUARANTINE: Final = "unreadable/"
"""Begins the kind of documents that could not be read: kept for people to look at, in nobody's way."""

# A commit must survive the death of this process, not of the host: after a reboot no container is left to describe, and
# images are checked against their layers. WAL with NORMAL gives that without an fsync in the way of a pod, but for the
# commit that finds the log full: a thread of its own therefore empties it long before.
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000", "wal_autocheckpoint=20000")
_CHECKPOINT, _TURNS = 500, 4
_SCHEMA = """CREATE TABLE IF NOT EXISTS docs (
    kind TEXT NOT NULL, key TEXT NOT NULL, doc BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID"""


class StateStore:
    """Documents are anything msgspec can encode (frozen dataclasses here). Thread-safe.

    ``checkpoint`` is after how many writes the log is copied into the database, beside all other work.
    """

    def __init__(self, path: Path, *, checkpoint: int = _CHECKPOINT) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        # Containers' environments are in it. SQLite gives its -wal and -shm files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._lock = threading.RLock()
        self._path, self._checkpoint_after, self._written = path, checkpoint, 0
        self._checkpointer: threading.Thread | None = None
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
            self._wrote()

    def insert(self, kind: str, key: str, doc: object) -> bool:
        """Write a document unless its key is taken; says whether it was written. Atomic across processes."""
        blob = msgspec.json.encode(doc)
        with self._lock:
            made = self._db.execute("INSERT OR IGNORE INTO docs VALUES (?,?,?)", (kind, key, blob)).rowcount == 1
            self._wrote()
            return made

    def replace(self, kind: str, key: str, doc: object, before: object) -> bool:
        """Write a document in the place of ``before``; says whether that was there. Atomic across processes."""
        blobs = msgspec.json.encode(doc), msgspec.json.encode(before)
        with self._lock:
            made = self._db.execute(
                "UPDATE docs SET doc=? WHERE kind=? AND key=? AND doc=?", (blobs[0], kind, key, blobs[1])
            )
            self._wrote()
            return made.rowcount == 1

    def get(self, kind: str, key: str, type_: type[T]) -> T | None:
        """The document, or ``None``."""
        with self._lock:
            row = self._db.execute("SELECT doc FROM docs WHERE kind=? AND key=?", (kind, key)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=type_)

    def delete(self, kind: str, key: str) -> None:
        """Forget a document; a missing one is no error."""
        with self._lock:
            self._db.execute("DELETE FROM docs WHERE kind=? AND key=?", (kind, key))
            self._wrote()

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

    def _wrote(self) -> None:
        # Called under the lock.
        self._written += 1
        busy = self._checkpointer is not None and self._checkpointer.is_alive()
        if self._written < self._checkpoint_after or busy:
            return
        thread = threading.Thread(target=self._checkpoint, name="checkpoint", daemon=True)
        # What was written stays written where the host has no room for a thread.
        with suppress(RuntimeError):
            thread.start()
            self._written, self._checkpointer = 0, thread

    def _checkpoint(self) -> None:
        """https://www.sqlite.org/c3ref/wal_checkpoint_v2.html: PASSIVE waits for nobody and keeps nobody waiting.

        The log begins anew only where all of it is copied: what is written meanwhile is a short second turn.
        """
        try:
            with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
                for _ in range(_TURNS):
                    busy, logged, copied = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    if busy or logged == copied:
                        break
        except sqlite3.Error as error:
            structlog.get_logger("state").warning("the database's log was not emptied", error=str(error))

    def close(self) -> None:
        """Close the database; a later call fails."""
        with self._lock:
            thread, self._written = self._checkpointer, 0
        if thread is not None:
            thread.join()
        with self._lock:
            self._db.close()
