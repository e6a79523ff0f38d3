"""System calls of a file server's that Python's ``os`` lacks. All raise OSError."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final

from forgeone_shim.kernel.syscalls import number, syscall

_AT_FDCWD: Final = -100
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_TIMES: Final = Struct("=qqqq")
_DIRENT_HEAD: Final = Struct("=QqHB")
_STATFS_SIZE: Final = 256
_U32: Final = 0xFFFFFFFF

# statfs(2): what the kernel itself shows of its own, whose files have no size that is true and are not written to.
_KERNELS: Final = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xCAFE4A11,  # bpf
        0x62656570,  # configfs
        0x6165676C,  # pstore
        0xDE5E81E4,  # efivarfs
        0xF97CFF8C,  # selinuxfs
        0x65735543,  # fusectl
        0x42494E4D,  # binfmt_misc
        0x6E667364,  # nfsd
        0x67596969,  # rpc_pipefs
        0x07655821,  # resctrl
        0x5A3C69F0,  # apparmorfs
        0x43415D53,  # smackfs
        0xABBA1974,  # xenfs
        0x0A647361,  # functionfs
        0xAEE71EE7,  # gadgetfs
    }
)
# Those that may say only at close(2) that what was written could not be kept.
_LATE: Final = frozenset({0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x00C36400, 0x65735546, 0x01021997, 0x6B414653})


def filesystem(fd: int) -> tuple[bool, bool]:
    """Whether a file's file system is the kernel's own, and whether it tells of errors late."""
    data = ctypes.create_string_buffer(_STATFS_SIZE)
    syscall(number("fstatfs"), fd, data)
    magic = int.from_bytes(data.raw[:8], "little") & _U32
    return magic in _KERNELS, magic in _LATE


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    syscall(number("renameat2"), old_dir, old, new_dir, new, flags)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    syscall(number("fallocate"), fd, mode, offset, length)


def set_times(path: str, atime: tuple[int, int] | None, mtime: tuple[int, int] | None, now: tuple[bool, bool]) -> None:
    """utimensat(2): seconds and nanoseconds, or the present, or as it is."""
    times = (*_time(atime, now=now[0]), *_time(mtime, now=now[1]))
    syscall(number("utimensat"), _AT_FDCWD, path.encode(), _TIMES.pack(*times), 0)


def _time(given: tuple[int, int] | None, *, now: bool) -> tuple[int, int]:
    if now:
        return 0, _UTIME_NOW
    return given or (0, _UTIME_OMIT)


def set_mode(path: str, mode: int) -> None:
    """chmod(2)."""
    Path(path).chmod(mode)


class Entries:
    """Reads directories (getdents64(2)), with the offsets that the file system itself goes on from."""

    def __init__(self, size: int) -> None:
        self._buffer = ctypes.create_string_buffer(size)
        self._view = memoryview(self._buffer)

    def read(self, fd: int, size: int) -> Iterator[tuple[int, int, int, bytes]]:
        """The next of them, of so many bytes: inode number, offset behind it, kind, name. Nothing at the end."""
        size = syscall(number("getdents64"), fd, self._buffer, min(size, len(self._buffer)))
        at = 0
        while at < size:
            ino, offset, length, kind = _DIRENT_HEAD.unpack_from(self._view, at)
            name = bytes(self._view[at + _DIRENT_HEAD.size : at + length])
            yield ino, offset, kind, name[: name.index(0)]
            at += length


class Caller:
    """In whose name files are made and reached: a user and group of the guest's, which are the same on the host.

    Only their names are taken: with SECBIT_NO_SETUID_FIXUP no capability goes with a change of user. They stay until
    others call, and a server of files on another host (NFS) sees them, too.
    """

    def __init__(self) -> None:
        self._uid = self._gid = -1

    def become(self, uid: int, gid: int) -> None:
        """Act for them."""
        if gid != self._gid:
            syscall(number("setfsgid"), gid)
            self._gid = gid
        if uid != self._uid:
            syscall(number("setfsuid"), uid)
            self._uid = uid
