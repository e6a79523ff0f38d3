"""``wasi:filesystem`` (WASI 0.2) beneath the directories that a guest is given, and nowhere else.

The kernel keeps paths beneath their directory (openat2(2), ``RESOLVE_BENEATH``); no path is taken apart here.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from engines.wasm.guest.http import kinds
from engines.wasm.guest.http.session import Err, Refused, Session, Waits
from engines.wasm.guest.http.wasi_io import READ_MAX, ErrorHandle, InputStream, OutputStream, StreamEnded, StreamFailed

_SYS_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_BENEATH: Final = 0x08
_OPEN_HOW: Final = struct.Struct("=QQQ")
_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_HELD_MAX: Final = 1024
_MODE: Final = 0o666
_DIRECTORY_MODE: Final = 0o777

_CODES: Final = {
    errno.EACCES: "access",
    errno.EAGAIN: "would-block",
    errno.EALREADY: "already",
    errno.EBADF: "bad-descriptor",
    errno.EBUSY: "busy",
    errno.EDEADLK: "deadlock",
    errno.EDQUOT: "quota",
    errno.EEXIST: "exist",
    errno.EFBIG: "file-too-large",
    errno.EILSEQ: "illegal-byte-sequence",
    errno.EINPROGRESS: "in-progress",
    errno.EINTR: "interrupted",
    errno.EINVAL: "invalid",
    errno.EIO: "io",
    errno.EISDIR: "is-directory",
    errno.ELOOP: "loop",
    errno.EMLINK: "too-many-links",
    errno.ENAMETOOLONG: "name-too-long",
    errno.ENODEV: "no-device",
    errno.ENOENT: "no-entry",
    errno.ENOLCK: "no-lock",
    errno.ENOMEM: "insufficient-memory",
    errno.ENOSPC: "insufficient-space",
    errno.ENOTDIR: "not-directory",
    errno.ENOTEMPTY: "not-empty",
    errno.ENOTRECOVERABLE: "not-recoverable",
    errno.ENOTSUP: "unsupported",
    errno.ENOTTY: "no-tty",
    errno.ENXIO: "no-such-device",
    errno.EOVERFLOW: "overflow",
    errno.EPERM: "not-permitted",
    errno.EPIPE: "pipe",
    errno.EROFS: "read-only",
    errno.ESPIPE: "invalid-seek",
    errno.ETXTBSY: "text-file-busy",
    # A path that leaves its directory.
    errno.EXDEV: "not-permitted",
}
_ADVICE: Final = {
    "normal": os.POSIX_FADV_NORMAL,
    "sequential": os.POSIX_FADV_SEQUENTIAL,
    "random": os.POSIX_FADV_RANDOM,
    "will-need": os.POSIX_FADV_WILLNEED,
    "dont-need": os.POSIX_FADV_DONTNEED,
    "no-reuse": os.POSIX_FADV_NOREUSE,
}
_READ_WRITE: Final = frozenset({"read", "write"})

_libc = ctypes.CDLL(None, use_errno=True)


class Descriptor:
    """An open file or directory, with what may be done with it and with what is beneath it."""

    __slots__ = ("fd", "flags", "session", "writable")
    kind = kinds.DESCRIPTOR

    def __init__(self, session: Session, fd: int, flags: frozenset[str], *, writable: bool) -> None:
        if len(session.closing) >= _HELD_MAX:
            os.close(fd)
            raise Err("insufficient-memory")
        self.fd = fd
        self.flags = flags
        self.writable = writable
        self.session = session
        session.closing.append(self)

    @property
    def open(self) -> bool:
        return self.fd >= 0

    def drop(self) -> None:
        self.session.closing.remove(self)
        self.close()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class DirectoryEntries:
    __slots__ = ("entries",)
    kind = kinds.DIRECTORY_ENTRY_STREAM

    def __init__(self, entries: list[tuple[str, str]]) -> None:
        self.entries = entries

    def drop(self) -> None:
        """Nothing is open."""


class _Reading:
    """A file from an offset on."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: Descriptor, offset: int) -> None:
        self._file = file
        self._offset = offset

    def read(self, length: int) -> bytes:
        try:
            data = os.pread(self._file.fd, min(length, READ_MAX), self._offset)
        except (OSError, OverflowError) as error:
            raise _failed(error) from error
        if not data:
            raise StreamEnded
        self._offset += len(data)
        return data

    def ready(self) -> bool:
        return True

    def await_in(self, waits: Waits) -> None:
        """Files are always ready."""


class _Writing:
    """A file from an offset on, or at its end."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: Descriptor, offset: int | None) -> None:
        self._file = file
        self._offset = offset

    def room(self) -> int:
        return READ_MAX

    def write(self, data: bytes) -> None:
        try:
            while data:
                if self._offset is None:
                    os.lseek(self._file.fd, 0, os.SEEK_END)
                    count = os.write(self._file.fd, data)
                else:
                    count = os.pwrite(self._file.fd, data, self._offset)
                    self._offset += count
                data = data[count:]
        except (OSError, OverflowError) as error:
            raise _failed(error) from error

    def flush(self) -> bool:
        return True

    def ready(self) -> bool:
        return True

    def await_in(self, waits: Waits) -> None:
        """Files are always ready."""


def _code(error: OSError | OverflowError) -> str:
    """An OverflowError is of a number that the kernel has no room for."""
    return "invalid" if isinstance(error, OverflowError) else _CODES.get(error.errno or 0, "io")


def _failed(error: OSError | OverflowError) -> StreamFailed:
    text = error.strerror if isinstance(error, OSError) else ""
    return StreamFailed(text or str(error), file=_code(error))


def _tried(action: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose failures are an error-code."""

    def call(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (OSError, OverflowError) as error:
            raise Err(_code(error)) from None

    return call


def _openat2(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2(2) beneath ``directory``."""
    encoded = path.encode()
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a path with NUL")
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(_SYS_OPENAT2, directory, encoded, how, len(how))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


class _Parent:
    """The directory that holds a path's last name, opened beneath another one."""

    def __init__(self, directory: Descriptor, path: str) -> None:
        head, _, self.name = path.rstrip("/").rpartition("/")
        if path.startswith("/") or self.name in ("", ".", ".."):
            raise OSError(errno.EPERM if path.startswith("/") else errno.EINVAL, "no name in a directory")
        self.fd = _openat2(directory.fd, head or ".", os.O_PATH | os.O_DIRECTORY)

    def __enter__(self) -> _Parent:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _changeable(directory: Descriptor) -> None:
    if not directory.writable:
        raise Err("read-only")


def _directories(session: Session) -> list[tuple[Descriptor, str]]:
    """Descriptors of the instance's own, as everything a guest holds is closed with it."""
    found = []
    for fd, name, writable in session.surroundings.directories:
        flags = frozenset({"read", "mutate-directory"}) if writable else frozenset({"read"})
        found.append((Descriptor(session, os.dup(fd), flags, writable=writable), name))
    return found


def _open_at(  # noqa: PLR0917
    session: Session,
    directory: Descriptor,
    how: frozenset[str],
    path: str,
    opening: frozenset[str],
    flags: frozenset[str],
) -> Descriptor:
    # A directory may be asked for with more than its parent grants: it gets what there is.
    if "write" in flags or opening & {"create", "truncate"}:
        _changeable(directory)
    access = os.O_RDONLY
    if "write" in flags:
        access = os.O_RDWR if "read" in flags else os.O_WRONLY
    options = {
        "create": os.O_CREAT,
        "directory": os.O_DIRECTORY,
        "exclusive": os.O_EXCL,
        "truncate": os.O_TRUNC,
    }
    # A new file is opened for writing even where only its being there is wanted; so says the kernel of truncation too.
    if "truncate" in opening and access == os.O_RDONLY:
        access = os.O_RDWR
    for word in opening:
        access |= options[word]
    if "symlink-follow" not in how:
        access |= os.O_NOFOLLOW
    if "file-integrity-sync" in flags:
        access |= os.O_SYNC
    elif "data-integrity-sync" in flags:
        access |= os.O_DSYNC
    fd = _openat2(directory.fd, path, access | _FLAGS, _MODE if "create" in opening else 0)
    kind = os.fstat(fd).st_mode
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        # A pipe or a device could hold a thread for ever.
        os.close(fd)
        raise Err("not-permitted")
    granted = flags & _READ_WRITE or frozenset({"read"})
    if stat.S_ISDIR(kind) and directory.writable:
        granted |= {"mutate-directory"}
    return Descriptor(session, fd, granted, writable=directory.writable)


def _stream_copy(session: Session, file: Descriptor) -> Descriptor:
    """Streams outlive the descriptor that they came from."""
    if stat.S_ISDIR(os.fstat(file.fd).st_mode):
        raise Err("is-directory")
    return Descriptor(session, os.dup(file.fd), file.flags, writable=file.writable)


def _read_via_stream(session: Session, file: Descriptor, offset: int) -> InputStream:
    if "read" not in file.flags:
        raise Err("bad-descriptor")
    return _FileInput(_stream_copy(session, file), offset)


def _write_via_stream(session: Session, file: Descriptor, offset: int | None) -> OutputStream:
    if "write" not in file.flags:
        raise Err("bad-descriptor")
    return _FileOutput(_stream_copy(session, file), offset)


class _FileInput(InputStream):
    __slots__ = ("_file",)

    def __init__(self, file: Descriptor, offset: int) -> None:
        super().__init__(_Reading(file, offset))
        self._file = file

    def drop(self) -> None:
        self._file.drop()


class _FileOutput(OutputStream):
    __slots__ = ("_file",)

    def __init__(self, file: Descriptor, offset: int | None) -> None:
        super().__init__(_Writing(file, offset))
        self._file = file

    def drop(self) -> None:
        self._file.drop()


def _read(_session: Session, file: Descriptor, length: int, offset: int) -> tuple[bytes, bool]:
    if "read" not in file.flags:
        raise Err("bad-descriptor")
    if not length:
        return b"", False
    data = os.pread(file.fd, min(length, READ_MAX), offset)
    return data, not data


def _write(_session: Session, file: Descriptor, data: bytes, offset: int) -> int:
    if "write" not in file.flags:
        raise Err("bad-descriptor")
    return os.pwrite(file.fd, data, offset)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "regular-file"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "symbolic-link"
    if stat.S_ISCHR(mode):
        return "character-device"
    if stat.S_ISBLK(mode):
        return "block-device"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "unknown"


def _stated(found: os.stat_result) -> tuple[Any, ...]:
    times = [divmod(each, 1_000_000_000) for each in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    return (_kind(found.st_mode), found.st_nlink, found.st_size, *[each if each[0] >= 0 else None for each in times])


def _at(directory: Descriptor, how: frozenset[str], path: str) -> os.stat_result:
    follow = 0 if "symlink-follow" in how else os.O_NOFOLLOW
    fd = _openat2(directory.fd, path, os.O_PATH | follow)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _hash(found: os.stat_result) -> tuple[int, int]:
    """Two that are equal are the same file as it was; inode numbers are none of the guest's business."""
    told = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}".encode()
    digest = hashlib.blake2b(told, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _entries(_session: Session, directory: Descriptor) -> DirectoryEntries:
    own = _openat2(directory.fd, ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(own) as found:
            listed = [(_kind(each.stat(follow_symlinks=False).st_mode), each.name) for each in found]
    finally:
        os.close(own)
    # A name that is no text cannot be told, nor be asked for.
    return DirectoryEntries([each for each in reversed(listed) if _is_text(each[1])])


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _next_entry(_session: Session, stream: DirectoryEntries) -> tuple[str, str] | None:
    return stream.entries.pop() if stream.entries else None


def _create_directory(_session: Session, directory: Descriptor, path: str) -> None:
    _changeable(directory)
    with _Parent(directory, path) as parent:
        os.mkdir(parent.name, _DIRECTORY_MODE, dir_fd=parent.fd)


def _remove_directory(_session: Session, directory: Descriptor, path: str) -> None:
    _changeable(directory)
    with _Parent(directory, path) as parent:
        os.rmdir(parent.name, dir_fd=parent.fd)


def _unlink(_session: Session, directory: Descriptor, path: str) -> None:
    _changeable(directory)
    if path.endswith("/"):
        raise Err("is-directory")
    with _Parent(directory, path) as parent:
        os.unlink(parent.name, dir_fd=parent.fd)


def _rename(_session: Session, directory: Descriptor, old: str, other: Descriptor, new: str) -> None:
    _changeable(directory)
    _changeable(other)
    with _Parent(directory, old) as source, _Parent(other, new) as target:
        os.rename(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd)


def _link(_session: Session, directory: Descriptor, how: frozenset[str], old: str, other: Descriptor, new: str) -> None:
    _changeable(directory)
    _changeable(other)
    if "symlink-follow" in how:
        raise Err("invalid")
    with _Parent(directory, old) as source, _Parent(other, new) as target:
        os.link(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)


def _symlink(_session: Session, directory: Descriptor, told: str, path: str) -> None:
    _changeable(directory)
    if told.startswith("/"):
        raise Err("not-permitted")
    with _Parent(directory, path) as parent:
        os.symlink(told, parent.name, dir_fd=parent.fd)


def _readlink(_session: Session, directory: Descriptor, path: str) -> str:
    with _Parent(directory, path) as parent:
        told = os.readlink(parent.name, dir_fd=parent.fd)
    if told.startswith("/"):
        raise Err("not-permitted")
    return told


def _set_size(_session: Session, file: Descriptor, size: int) -> None:
    if "write" not in file.flags:
        raise Err("bad-descriptor")
    os.ftruncate(file.fd, size)


def _nanoseconds(told: Any, kept: int) -> int:
    if told == "no-change":
        return kept
    if told == "now":
        return -1
    seconds, nanoseconds = told[1]
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _times(fd: int, accessed: Any, modified: Any) -> None:
    found, now = os.fstat(fd), time.time_ns()
    values = [_nanoseconds(accessed, found.st_atime_ns), _nanoseconds(modified, found.st_mtime_ns)]
    os.utime(fd, ns=(now if values[0] < 0 else values[0], now if values[1] < 0 else values[1]))


def _set_times(_session: Session, file: Descriptor, accessed: Any, modified: Any) -> None:
    _changeable(file)
    _times(file.fd, accessed, modified)


def _set_times_at(
    _session: Session, directory: Descriptor, how: frozenset[str], path: str, accessed: Any, modified: Any
) -> None:
    _changeable(directory)
    follow = 0 if "symlink-follow" in how else os.O_NOFOLLOW
    fd = _openat2(directory.fd, path, os.O_RDONLY | os.O_NONBLOCK | follow)
    try:
        _times(fd, accessed, modified)
    finally:
        os.close(fd)


def _error_code(_session: Session, error: ErrorHandle) -> str | None:
    return error.file if isinstance(error.file, str) else None


def _advise(_session: Session, file: Descriptor, offset: int, length: int, advice: str) -> None:
    if offset > 1 << 62 or length > 1 << 62:
        raise Refused("advice about more than a file can hold")
    os.posix_fadvise(file.fd, offset, length, _ADVICE[advice])


_D: Final = "wasi:filesystem/types#[method]descriptor."
_ACTIONS: Final[dict[str, Callable[..., Any]]] = {
    "read-via-stream": _read_via_stream,
    "write-via-stream": _write_via_stream,
    "append-via-stream": lambda session, file: _write_via_stream(session, file, None),
    "advise": _advise,
    "sync-data": lambda _session, file: os.fdatasync(file.fd),
    "sync": lambda _session, file: os.fsync(file.fd),
    "get-flags": lambda _session, file: file.flags,
    "get-type": lambda _session, file: _kind(os.fstat(file.fd).st_mode),
    "set-size": _set_size,
    "set-times": _set_times,
    "read": _read,
    "write": _write,
    "read-directory": _entries,
    "create-directory-at": _create_directory,
    "stat": lambda _session, file: _stated(os.fstat(file.fd)),
    "stat-at": lambda _session, directory, how, path: _stated(_at(directory, how, path)),
    "set-times-at": _set_times_at,
    "link-at": _link,
    "open-at": _open_at,
    "readlink-at": _readlink,
    "remove-directory-at": _remove_directory,
    "rename-at": _rename,
    "symlink-at": _symlink,
    "unlink-file-at": _unlink,
    "metadata-hash": lambda _session, file: _hash(os.fstat(file.fd)),
    "metadata-hash-at": lambda _session, directory, how, path: _hash(_at(directory, how, path)),
}

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    **{f"{_D}{name}": _tried(action) for name, action in _ACTIONS.items()},
    f"{_D}is-same-object": lambda _session, one, other: os.path.sameopenfile(one.fd, other.fd),
    "wasi:filesystem/types#[method]directory-entry-stream.read-directory-entry": _next_entry,
    "wasi:filesystem/types#filesystem-error-code": _error_code,
    "wasi:filesystem/preopens#get-directories": _directories,
}
