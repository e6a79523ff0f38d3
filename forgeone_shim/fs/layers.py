"""Unpacked image layers on disk, shared between images, each under its diffID.

A layer is made in a workshop directory (``.new-*``) and renamed to its name when it is whole and verified; on removal
it is renamed away (``.old-*``) first. So a directory named by a diffID holds a complete layer: ``fs`` is the tree (the
overlay's lower directory), ``layer.json`` its record, ``implied`` the parents that the layer itself does not describe.

Nothing waits for the disk in a pull. A layer counts as safe across a power loss once ``synced`` stands in it, which a
background ``syncfs(2)`` writes some seconds after the last unpack; after a reboot a layer without it is removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from errno import EEXIST, ENOTEMPTY
from pathlib import Path

import msgspec

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, NotFound, syscall_error
from forgeone_shim.fs.single import write_file
from forgeone_shim.fs.sync import DelayedSync
from forgeone_shim.fs.trees import remove_tree, tree_usage
from forgeone_shim.fs.unpack import Stream, Unpacked, unpack
from forgeone_shim.fs.unpack_worker import IMPLIED, TREE

_DIFF_ID = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[0-9a-f]{64}")
_COMPRESSIONS = ("gzip", "zstd", "none")
_NEW, _OLD = ".new-", ".old-"
_RECORD, _SYNCED = "layer.json", "synced"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """Disk use of an unpacked layer."""

    size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Lower:
    """A layer as part of an overlay.

    ``implied`` are directories it has only as parents of what it does describe, relative to its root;
    ``opaque_root`` says that it hides every layer below it (overlayfs knows that of other directories only).
    """

    tree: Path
    implied: frozenset[bytes]
    opaque_root: bool = False


@dataclass(frozen=True, slots=True)
class _Record:
    """``layer.json``: ``boot`` tells whether the page cache that the layer was written to still lives."""

    size: int
    inodes: int
    opaque_root: bool
    implied: bool
    boot: str


def _info(record: _Record) -> LayerInfo:
    return LayerInfo(record.size, record.inodes)


class LayerStore:
    """Thread-safe; a second process may use the same ``root``. ``sync_delay`` is in seconds."""

    def __init__(self, root: Path, *, sync_delay: float = 10.0) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise syscall_error("mkdir", root, error) from error
        self._root = root
        self._boot = _BOOT_ID.read_text().strip()
        self._lock = threading.Lock()
        self._flights: dict[str, threading.Event] = {}
        self._sync = DelayedSync(root, sync_delay)

    def has(self, diff_id: str) -> bool:
        """Whether the layer is here, whole and verified."""
        return self._record(self._home(diff_id)) is not None

    def path(self, diff_id: str) -> Path:
        """The layer's tree, as a lower directory of an overlay; NotFound."""
        return self.lower(diff_id).tree

    def lower(self, diff_id: str) -> Lower:
        """The layer as part of an overlay; NotFound."""
        home = self._home(diff_id)
        record = self._found(diff_id)
        implied = (home / IMPLIED).read_bytes().split(b"\0") if record.implied else ()
        return Lower(home / TREE, frozenset(implied), record.opaque_root)

    def info(self, diff_id: str) -> LayerInfo:
        """What the layer takes; NotFound."""
        return _info(self._found(diff_id))

    def ids(self) -> list[str]:
        """The diffIDs of all layers, in no order of meaning."""
        homes = sorted(path for path in self._root.iterdir() if _NAME.fullmatch(path.name))
        return [f"sha256:{home.name}" for home in homes if self._record(home) is not None]

    def unpack(
        self,
        diff_id: str,
        compression: str,
        stream: Stream,
        deadline: Deadline,
        on_bytes: Callable[[int], None] | None = None,
        *,
        verify: Callable[[], None] | None = None,
    ) -> LayerInfo:
        """Unpack ``stream`` to its end as the layer ``diff_id``; all or nothing.

        ``verify`` is called when all was read and unpacked, and may raise to refuse the layer. ``on_bytes`` is told the
        count of each piece read. A layer that is here already is not read; of several calls for one layer the others
        wait for the first, and read their own stream only if that fails.

        :raises InvalidInput: the layer is malformed, or points outside its root.
        :raises FailedPrecondition: the archive's hash is not the diffID.
        :raises ResourceExhausted: the disk is full.
        :raises DeadlineExceeded: the deadline passed.
        """
        home = self._home(diff_id)
        if compression not in _COMPRESSIONS:
            raise InvalidInput("layer", f"unknown compression {compression!r}")

        def make() -> LayerInfo:
            with self._sync.held(), self._workshop() as (name, fd):
                found = unpack(fd, stream, deadline, on_bytes)
                if verify is not None:
                    verify()
                record = self._checked(diff_id, found, self._root / name)
                (self._root / name / _RECORD).write_bytes(msgspec.json.encode(record))
                deadline.check("before a layer was committed")
                self._commit(name, home)
            self._sync.add(home / _SYNCED)
            return _info(record)

        return self._once(diff_id, deadline, make)

    def keep(
        self, layer_id: str, file: str, stream: Stream, deadline: Deadline, *, verify: Callable[[], None]
    ) -> LayerInfo:
        """Store ``stream`` to its end as the only file of the layer ``layer_id``; all or nothing.

        ``file`` is a relative path, checked by the caller. ``verify`` is called when all was read, and may raise to
        refuse it. Of several calls for one layer the others wait for the first.

        :raises ResourceExhausted: the disk is full.
        :raises DeadlineExceeded: the deadline passed.
        """
        home = self._home(layer_id)

        def make() -> LayerInfo:
            with self._sync.held(), self._workshop() as (name, _):
                size, directories = write_file(self._root / name / TREE, file, stream, deadline)
                verify()
                record = _Record(size, directories + 1, opaque_root=False, implied=False, boot=self._boot)
                (self._root / name / _RECORD).write_bytes(msgspec.json.encode(record))
                self._commit(name, home)
            self._sync.add(home / _SYNCED)
            return _info(record)

        return self._once(layer_id, deadline, make)

    def remove(self, diff_id: str) -> None:
        """Remove the layer; one that is not here is no error. No overlay may use it."""
        self._discard(self._home(diff_id))

    def recover(self) -> None:
        """Remove what is half made or half removed, and what a power loss may have torn. Call it once, at start."""
        for path in list(self._root.iterdir()):
            if path.name.startswith((_NEW, _OLD)):
                self._remove_abandoned(path.name)
            elif _NAME.fullmatch(path.name):
                record = self._record(path)
                synced = (path / _SYNCED).exists()
                if record is None or not (synced or record.boot == self._boot):
                    self._discard(path)
                elif not synced:
                    self._sync.add(path / _SYNCED)

    def close(self) -> None:
        """Stop the background thread; layers not synced yet are at the next start."""
        self._sync.close()

    def _home(self, diff_id: str) -> Path:
        match = _DIFF_ID.fullmatch(diff_id)
        if match is None:
            raise InvalidInput("diff_id", f"{diff_id[:200]!r} is not sha256: and 64 hexadecimal digits")
        return self._root / match[1]

    def _found(self, diff_id: str) -> _Record:
        record = self._record(self._home(diff_id))
        if record is None:
            raise NotFound("layer", diff_id)
        return record

    @staticmethod
    def _record(home: Path) -> _Record | None:
        try:
            return msgspec.json.decode((home / _RECORD).read_bytes(), type=_Record)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError, UnicodeError):
            return None

    def _once(self, diff_id: str, deadline: Deadline, make: Callable[[], LayerInfo]) -> LayerInfo:
        """Of several threads that want the layer one makes it; the next tries when that failed."""
        home = self._home(diff_id)
        while True:
            with self._lock:
                if (record := self._record(home)) is not None:
                    return _info(record)
                flight = self._flights.get(diff_id)
                if flight is None:
                    mine = self._flights[diff_id] = threading.Event()
                    break
            if not flight.wait(deadline.remaining()):
                raise DeadlineExceeded("deadline passed while another pull unpacked the layer")
        try:
            return make()
        except OSError as error:
            raise syscall_error("unpack a layer into", self._root, error) from error
        finally:
            with self._lock:
                del self._flights[diff_id]
            mine.set()

    def _checked(self, diff_id: str, found: Unpacked, workshop: Path) -> _Record:
        if f"sha256:{found.sha256}" != diff_id:
            raise FailedPrecondition(f"the layer's archive is sha256:{found.sha256}, not {diff_id} as the image says")
        size, inodes = found.size, found.inodes
        if not inodes:
            tree = os.open(workshop / TREE, _DIRECTORY)
            try:
                size, inodes = tree_usage(tree)
            finally:
                os.close(tree)
        return _Record(size, inodes, found.opaque_root, (workshop / IMPLIED).exists(), self._boot)

    def _commit(self, name: str, home: Path) -> None:
        try:
            (self._root / name).rename(home)
        except OSError as error:
            if error.errno not in (EEXIST, ENOTEMPTY):
                raise
            # Another process was faster; or left a torn one.
            if self._record(home) is None:
                self._discard(home)
                (self._root / name).rename(home)

    @contextmanager
    def _workshop(self) -> Iterator[tuple[str, int]]:
        """A new directory, locked so that no other process takes it for abandoned; removed unless it was renamed."""
        with ExitStack() as stack:
            while True:
                name = _NEW + secrets.token_hex(8)
                (self._root / name).mkdir(mode=0o700)
                stack.callback(self._remove, name)
                fd = os.open(self._root / name, _DIRECTORY)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Another process may have cleaned up between the first step and the last.
                if os.fstat(fd).st_nlink:
                    break
                stack.close()
            yield name, fd

    def _remove_abandoned(self, name: str) -> None:
        try:
            fd = os.open(self._root / name, _DIRECTORY)
        except OSError:
            return
        try:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(name)
        finally:
            os.close(fd)

    def _discard(self, path: Path) -> None:
        """Out of sight at once, then removed."""
        name = _OLD + secrets.token_hex(8)
        try:
            path.rename(self._root / name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise syscall_error("rename", path, error) from error
        self._remove(name)

    def _remove(self, name: str) -> None:
        root = os.open(self._root, _DIRECTORY)
        try:
            remove_tree(root, name)
        except OSError as error:
            raise syscall_error("remove", self._root / name, error) from error
        finally:
            os.close(root)
