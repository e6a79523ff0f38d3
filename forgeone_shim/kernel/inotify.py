"""inotify by ctypes: a file descriptor to poll and the names it reports."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
IN_ATTRIB = 0x4
_IN_Q_OVERFLOW = 0x4000
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one read found; ``overflow`` says that the kernel dropped events and the directory must be listed."""

    names: tuple[str, ...]
    overflow: bool


class DirectoryEvents:
    """Watches one directory; non-blocking. By default for files that appear whole (closed, or renamed into place)."""

    def __init__(self, directory: Path, mask: int = IN_CLOSE_WRITE | IN_MOVED_TO) -> None:
        self._fd = int(_libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify_init1")
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            errno = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(errno, os.strerror(errno), str(directory))

    def fileno(self) -> int:
        """For select, poll and epoll."""
        return self._fd

    def read(self) -> Seen:
        """Everything reported so far; empty when nothing was."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return Seen((), overflow=False)
        names: list[str] = []
        overflow, offset = False, 0
        while offset < len(data):
            _, mask, _, length = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            overflow |= bool(mask & _IN_Q_OVERFLOW)
            if name:
                names.append(os.fsdecode(name))
        return Seen(tuple(names), overflow)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)
