"""What the installer is about to do, on disk before it is done; and what it has done, as the last step of all.

Two files: the journal is there while something is under way, the record while something is installed. Whoever holds
the lock and finds a journal knows that its writer has died, and undoes what that had begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec

from forgeone_shim.errors import FailedPrecondition, InternalError, syscall_error
from forgeone_shim.node import files, layout
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import Step

_FORMAT: Final = 1
_MODE: Final = 0o600

T = TypeVar("T")


class Busy(FailedPrecondition):
    """Somebody works on the node."""


class Edit(msgspec.Struct, frozen=True):
    """A file of the kubelet's: what it held, and what the installer wrote."""

    path: str
    old: bytes
    new: bytes


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed.

    ``config`` is what was written to config.toml (``None``: an administrator's is in use), and ``given`` what that was
    made of; ``endpoint`` is what the kubelet used before, ``edits`` how it was told otherwise.
    """

    format: int = _FORMAT
    version: str
    mode: str
    service: str
    upstream: str = ""
    config: bytes | None = None
    given: bytes = b""
    endpoint: str = ""
    edits: tuple[Edit, ...] = ()


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """``begun`` steps have been begun, the last of them perhaps not finished; ``finished``: all have been.

    ``record`` is what the record becomes at the end (``None``: it goes away), ``after`` are trees to remove then.
    """

    format: int = _FORMAT
    verb: str
    steps: tuple[Step, ...]
    record: Record | None
    after: tuple[str, ...] = ()
    begun: int = 0
    finished: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """How the last run ended, for whoever could not wait for it: ``done``, ``undone`` or ``stuck``, and why."""

    verb: str
    result: str
    reason: str = ""


class Store:
    """The installer's files on a node."""

    def __init__(self, node: Layout) -> None:
        self._node = node

    def journal(self) -> Journal | None:
        """What is under way, or was when its writer died."""
        return self._read(layout.JOURNAL, Journal)

    def record(self) -> Record | None:
        """What is installed."""
        return self._read(layout.RECORD, Record)

    def outcome(self) -> Outcome | None:
        """How the last run ended."""
        return self._read(layout.OUTCOME, Outcome)

    def keep(self, what: Journal | Record | Outcome) -> None:
        """:raises InternalError: it cannot be written."""
        path = {Journal: layout.JOURNAL, Record: layout.RECORD, Outcome: layout.OUTCOME}[type(what)]
        files.replace(self._node.at(path), msgspec.json.encode(what), mode=_MODE)

    def forget_journal(self) -> None:
        """Nothing is under way."""
        files.remove(self._node.at(layout.JOURNAL))

    def forget_record(self) -> None:
        """Nothing is installed."""
        files.remove(self._node.at(layout.RECORD))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else installs. Whoever does is not waited for: what it leaves is not what was planned for.

        :raises Busy: somebody else does.
        """
        path = self._node.at(layout.LOCK)
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "another forge node is at work on this node"
                raise Busy(what, fix=f"wait for it; {path} is its lock") from None
            except OSError as error:
                raise syscall_error("lock", path, error) from None
            yield

    def _read(self, path: str, kind: type[T]) -> T | None:
        content = files.read(self._node.at(path))
        if content is None:
            return None
        try:
            found = msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError as error:
            raise InternalError(f"{path}: {error}", fix="a newer forge may have written it: use that one") from None
        if getattr(found, "format", _FORMAT) != _FORMAT:
            raise InternalError(f"{path} is of another version of forge", fix="use that one")
        return found
