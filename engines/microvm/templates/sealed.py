"""Files in memory that nobody can change any more (memfd_create(2), F_ADD_SEALS)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from typing import Final

from forgeone_shim.errors import syscall_error
from forgeone_shim.kernel.syscalls import number, syscall

_CHUNK: Final = 1 << 20
_PAGE: Final = 4096
_EMPTY: Final = bytes(_PAGE)
# FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PUNCH_HOLE: Final = 3
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make(name: str, size: int) -> int:
    """An empty one of that many bytes; the caller closes it. InternalError otherwise."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise syscall_error("memfd_create", name, error) from error
    return fd


def fill(fd: int) -> None:
    """Have all its pages in memory, whoever reads it. Raises OSError.

    In a private mapping the first look at a hole, or write to it, makes a page of the file, which its user's control
    group pays for as long as the file is there, besides its own copy: of a pod's machine twice its memory.
    """
    os.posix_fallocate(fd, 0, os.fstat(fd).st_size)


def seal(fd: int) -> None:
    """Whoever has it may read it, and map it privately. InternalError: somebody has it mapped to write to it."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise syscall_error("seal", f"descriptor {fd}", error) from error


def thin(fd: int) -> None:
    """Make holes of all pages that hold nothing but zeros, so that none of them is kept on disk. Raises OSError."""
    for at, length in list(extents(fd)):
        begin = -1
        for offset in range(at, at + length, _CHUNK):
            data = os.pread(fd, min(_CHUNK, at + length - offset), offset)
            for page in range(0, len(data), _PAGE):
                empty = data[page : page + _PAGE] == _EMPTY
                if empty and begin < 0:
                    begin = offset + page
                elif not empty and begin >= 0:
                    syscall(number("fallocate"), fd, _PUNCH_HOLE, begin, offset + page - begin)
                    begin = -1
        if begin >= 0:
            syscall(number("fallocate"), fd, _PUNCH_HOLE, begin, at + length - begin)


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """Offset and size of each part that is not a hole, in order. Raises OSError."""
    end = os.fstat(fd).st_size
    at = 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            # Nothing but a hole is left (ENXIO).
            return
        until = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, until - at
        at = until
