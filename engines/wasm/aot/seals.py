"""What proves that compiled code is ours: an HMAC-SHA256 over it and what is known of it, by a key of this node's.

Compiled code is native code that runs in the guests' processes: whoever could put some in its place would run there.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from engines.wasm.aot.target import Kind, Variant
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, syscall_error

_KEY_SIZE: Final = 32
_CHUNK: Final = 1 << 20


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Compiled code: its name (:func:`engines.wasm.aot.target.key`), and what is known of its module.

    ``digest`` is the module's own (sha256, hex), ``size`` the code's (bytes). ``exports`` and ``imports`` are names:
    of a core module's functions and of the modules it imports from, of a component's interfaces and functions
    (``INTERFACE#NAME``).
    """

    key: str
    digest: str
    kind: Kind
    variant: Variant
    size: int
    exports: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: Entry
    mac: str


@dataclass(frozen=True, slots=True)
class Mark:
    """By which a file is known again as long as nobody wrote to it, and its times cannot have been set back (ctime)."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def mark(fd: int) -> Mark:
    """Of an open file."""
    found = os.fstat(fd)
    return Mark(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def digest(fd: int, deadline: Deadline) -> str:
    """The SHA-256 of a file from its beginning (hex); its offset stays."""
    found = hashlib.sha256()
    _feed(fd, found.update, deadline)
    return found.hexdigest()


class Sealer:
    """Seals and verifies with the key in ``path``, which is made when it is first needed. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = b""

    def seal(self, entry: Entry, fd: int, deadline: Deadline) -> bytes:
        """For the file beside the code."""
        return msgspec.json.encode(_Seal(entry, self._mac(entry, fd, deadline)))

    def verified(self, seal: bytes, fd: int, deadline: Deadline) -> Entry | None:
        """What a seal says, where it was made here of exactly the code that is in ``fd``; else ``None``."""
        try:
            found = msgspec.json.decode(seal, type=_Seal)
        except (msgspec.DecodeError, UnicodeError):
            return None
        if found.entry.size != os.fstat(fd).st_size:
            return None
        # As bytes: of two texts it compares none that is not ASCII.
        made = self._mac(found.entry, fd, deadline)
        return found.entry if hmac.compare_digest(found.mac.encode(), made.encode()) else None

    def _mac(self, entry: Entry, fd: int, deadline: Deadline) -> str:
        self._key = self._key or _key(self._path)
        found = hmac.new(self._key, digestmod="sha256")
        said = msgspec.json.encode(entry)
        # The length says where what is said ends and the code begins.
        found.update(len(said).to_bytes(8, "big") + said)
        _feed(fd, found.update, deadline)
        return found.hexdigest()


def _feed(fd: int, update: Callable[[bytes], None], deadline: Deadline) -> None:
    at = 0
    try:
        while chunk := os.pread(fd, _CHUNK, at):
            deadline.check("while a module was read")
            update(chunk)
            at += len(chunk)
    except OSError as error:
        raise syscall_error("read", "a module", error) from error


def _key(path: Path) -> bytes:
    """Read, or made; of two that make it at once the first wins.

    :raises InternalError: it is not as it was made: others may know it.
    """
    try:
        if not path.exists():
            _make_key(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            found, key = os.fstat(fd), os.read(fd, _KEY_SIZE + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise syscall_error("open", path, error) from error
    open_to_others = stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid()
    if open_to_others or len(key) != _KEY_SIZE:
        raise InternalError(f"the key {path} is not 32 bytes that only root can read", fix=f"remove {path.parent}")
    return key


def _make_key(path: Path) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, os.urandom(_KEY_SIZE))
        os.fsync(fd)
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        os.close(fd)
        new.unlink()
