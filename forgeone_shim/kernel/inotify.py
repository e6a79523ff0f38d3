"""Watches one directory for files that appear whole: written and closed, or renamed into place."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_Q_OVERFLOW = 0x8, 0x80, 0x4000
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_HEAD = struct.Struct("iIII")


class DirectoryWatch:
    """Calls ``on_file(name)`` in a thread of its own for each file that appears in ``directory``.

    When the kernel's queue overflows, ``on_overflow`` is called: the caller lists the directory itself.
    """

    def __init__(self, directory: Path, on_file: Callable[[str], None], on_overflow: Callable[[], None]) -> None:
        self._on_file, self._on_overflow = on_file, on_overflow
        self._fd = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0:
            errno = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(errno, os.strerror(errno), str(directory))
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake in ready:
                return
            data = os.read(self._fd, 1 << 16)
            offset = 0
            while offset < len(data):
                _, mask, _, length = _HEAD.unpack_from(data, offset)
                offset += _HEAD.size
                name = data[offset : offset + length].rstrip(b"\0")
                offset += length
                if mask & _IN_Q_OVERFLOW:
                    self._on_overflow()
                elif name:
                    self._on_file(os.fsdecode(name))

    def close(self) -> None:
        """Stop watching; no callback runs after this returns."""
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        os.close(self._fd)
        os.close(self._wake)
