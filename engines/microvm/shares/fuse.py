"""FUSE messages as bytes (``linux/fuse.h``, version 7.31): what a client asks, what is answered. No I/O.

A guest may send anything. What is shorter than its kind needs, or has a name that is none, is EINVAL to whoever asked;
only a length that cannot be ends the connection, as nobody can tell then where the next message begins.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

ROOT_ID: Final = 1
# What guest/share.c answers FUSE_INIT with; a test compares.
MAX_WRITE: Final = 1 << 20
# The longest message has that much data, and headers (fuse_in_header, fuse_write_in).
REQUEST_MAX: Final = MAX_WRITE + 80
_NAME_MAX: Final = 255
_PATH_MAX: Final = 4095
# How long a guest may go by what it was told: what the host changes is seen at most that much later.
VALID_NS: Final = 500_000_000

IN_HEADER: Final = Struct("<IIQQIIIHH")
OUT_HEADER: Final = Struct("<IiQ")
_LENGTH: Final = Struct("<I")
_ATTR: Final = Struct("<QQQqqqIIIIIIIIII")
_ENTRY: Final = Struct("<QQQQII")
_ATTR_HEAD: Final = Struct("<QII")
OPEN_OUT: Final = Struct("<QII")
_DIRENT: Final = Struct("<QQII")
SIZE_OUT: Final = Struct("<II")
OFFSET_OUT: Final = Struct("<Q")
_STATFS: Final = Struct("<QQQQQIIII24x")
# Bodies of requests.
FORGET: Final = Struct("<Q")
FORGET_ONE: Final = Struct("<QQ")
COUNT: Final = Struct("<II")
GETATTR: Final = Struct("<IIQ")
SETATTR: Final = Struct("<IIQQQqqqIIIIIIII")
MKNOD: Final = Struct("<IIII")
MKDIR: Final = Struct("<II")
RENAME: Final = Struct("<Q")
RENAME2: Final = Struct("<QII")
LINK: Final = Struct("<Q")
OPEN: Final = Struct("<II")
CREATE: Final = Struct("<IIII")
READ: Final = Struct("<QQIIQII")
WRITE: Final = Struct("<QQIIQII")
HANDLE: Final = Struct("<Q")
FSYNC: Final = Struct("<QII")
XATTR: Final = Struct("<II")
LSEEK: Final = Struct("<QQII")
FALLOCATE: Final = Struct("<QQQII")
COPY: Final = Struct("<QQQQQQQ")


class Opcode(IntEnum):
    """What is asked; of the rest of them a client is told ENOSYS, and asks no more."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47


# Nobody waits for an answer to these.
SILENT: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.DESTROY, Opcode.NOTIFY_REPLY})


class Set(IntFlag):
    """Which of a SETATTR's values count (``FATTR_*``)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    KILL_SUIDGID = 1 << 11


GETATTR_FH: Final = 1
FSYNC_DATA: Final = 1
OPEN_KILL_SUIDGID: Final = 1
WRITE_KILL_SUIDGID: Final = 1 << 2
DIRECT_IO: Final = 1 << 0
KEEP_CACHE: Final = 1 << 1
NOFLUSH: Final = 1 << 5


class Request:
    """One message: its header, and the rest of it, which is only there while it is handled."""

    __slots__ = ("body", "gid", "nodeid", "opcode", "uid", "unique")

    def __init__(self, message: memoryview) -> None:
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, _, _, _ = IN_HEADER.unpack_from(message)
        self.body = message[IN_HEADER.size :]

    def fields(self, shape: Struct) -> tuple[int, ...]:
        """The numbers the body begins with. Raises OSError (EINVAL): it is too short."""
        if len(self.body) < shape.size:
            raise OSError(errno.EINVAL, "a request is too short")
        return shape.unpack_from(self.body)

    def name(self, after: int = 0) -> bytes:
        """The one name that the body has behind ``after`` bytes. Raises OSError: it is none."""
        return self.names(1, after)[0]

    def names(self, count: int, after: int = 0) -> list[bytes]:
        """As many names, each a single component of a path. Raises OSError: they are none."""
        found = self.texts(count, after)
        for name in found:
            check_name(name)
        return found

    def texts(self, count: int, after: int = 0) -> list[bytes]:
        """As many texts, of a path's length at most, each with NUL at its end. Raises OSError: there are fewer."""
        # No more is looked at than there can be of it; a value may come after it.
        found = bytes(self.body[after : after + count * (_PATH_MAX + 1)]).split(b"\0", count)
        if len(found) != count + 1:
            raise OSError(errno.EINVAL, "a text has no end")
        return found[:count]


def check_name(name: bytes) -> None:
    """Raises OSError: the name leads elsewhere than to an entry of its directory."""
    if not name or name in (b".", b"..") or b"/" in name:
        raise OSError(errno.EINVAL, "no name of a directory's entry")
    if len(name) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name is too long")


def message_length(data: memoryview) -> int:
    """How long the message is that ``data`` begins with; 0: too little is there to tell.

    :raises ValueError: no message can be that long.
    """
    if len(data) < _LENGTH.size:
        return 0
    (length,) = _LENGTH.unpack_from(data)
    if not IN_HEADER.size <= length <= REQUEST_MAX:
        raise ValueError(f"a FUSE message of {length} bytes")
    return int(length)


def answer(unique: int, body: bytes = b"") -> bytes:
    """An answer with what was asked for."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def refusal(unique: int, code: int) -> bytes:
    """An answer with an error."""
    return OUT_HEADER.pack(OUT_HEADER.size, -code, unique)


def please_forget() -> bytes:
    """To guest/share.c alone: the kernel is to let go of inodes that nobody uses."""
    return OUT_HEADER.pack(OUT_HEADER.size, 0, 0)


def attributes(found: os.stat_result, ino: int) -> bytes:
    """``struct fuse_attr``."""
    atime, atime_ns = divmod(found.st_atime_ns, 1_000_000_000)
    mtime, mtime_ns = divmod(found.st_mtime_ns, 1_000_000_000)
    ctime, ctime_ns = divmod(found.st_ctime_ns, 1_000_000_000)
    return _ATTR.pack(
        ino,
        found.st_size,
        found.st_blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        found.st_mode,
        found.st_nlink & 0xFFFFFFFF,
        found.st_uid,
        found.st_gid,
        _device(found.st_rdev) if found.st_rdev else 0,
        found.st_blksize & 0xFFFFFFFF,
        0,
    )


def _device(number: int) -> int:
    """As the kernel's new_encode_dev()."""
    major, minor = os.major(number) & 0xFFF, os.minor(number) & 0xFFFFF
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def entry(nodeid: int, found: os.stat_result, ino: int, *, valid_ns: int = VALID_NS) -> bytes:
    """``struct fuse_entry_out``: a name, for how long it is valid, and what it is of."""
    return _ENTRY.pack(nodeid, 0, 0, 0, valid_ns, VALID_NS) + attributes(found, ino)


# To READDIRPLUS: nothing is told of a name but that it is there.
NO_ENTRY: Final = bytes(_ENTRY.size + _ATTR.size)


def attr_out(found: os.stat_result, ino: int) -> bytes:
    """``struct fuse_attr_out``."""
    return _ATTR_HEAD.pack(0, VALID_NS, 0) + attributes(found, ino)


def dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """``struct fuse_dirent``, padded; in READDIRPLUS it comes after an entry."""
    return _DIRENT.pack(ino, offset, len(name), kind) + name + bytes(-(_DIRENT.size + len(name)) % 8)


def statfs(found: os.statvfs_result) -> bytes:
    """``struct fuse_statfs_out``."""
    return _STATFS.pack(
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_bsize,
        min(found.f_namemax, _NAME_MAX),
        found.f_frsize,
        0,
    )
