"""A path watched as a whole: what is in a directory, and whether the way to it leads somewhere else by now.

The directory may not exist yet, be replaced, or be reached through symlinks: each directory on the way that could
change where the path leads is watched for the name that matters there.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_UNMOUNT, _IN_Q_OVERFLOW, _IN_IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_IN_ONLYDIR, _IN_MASK_ADD = 0x01000000, 0x20000000
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_NAMES: Final = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_SELF: Final = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR | _IN_MASK_ADD
_HEAD = struct.Struct("iIII")
_SYMLINKS_MAX: Final = 40
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Step:
    """A directory on the way. ``name`` is the entry in it that matters, empty where every one does."""

    directory: str
    name: str


def way(path: str) -> tuple[Step, ...]:
    """The directories whose changes may change where ``path`` leads, and that one itself (the last) if it is there."""
    steps: list[Step] = []
    left = [part for part in path.split("/") if part]
    at, followed = "/", 0
    while left:
        name = left.pop(0)
        steps.append(Step(at, name))
        here = f"{at.rstrip('/')}/{name}"
        try:
            mode = os.lstat(here).st_mode
            if stat.S_ISLNK(mode):
                target = str(Path(here).readlink())
                followed += 1
                if followed > _SYMLINKS_MAX:
                    return tuple(steps)
                left[:0] = [part for part in target.split("/") if part]
                at = "/" if target.startswith("/") else at
                continue
        except OSError:
            return tuple(steps)
        if not stat.S_ISDIR(mode):
            return tuple(steps)
        # After a symlink the rest may climb; the kernel resolves dots below a real directory, so this is exact.
        at = os.path.normpath(here)
    return (*steps, Step(at, ""))


class Watches:
    """One inotify descriptor over the way to a directory, and over some of the directories in it; non-blocking.

    What happened before it was made is not told: make it first, then look.
    """

    def __init__(self, path: str, within: Iterable[str] = ()) -> None:
        """``within``: names of directories in it to watch too; those that are not there do not matter.

        Raises OSError where the kernel has no more watches to give.
        """
        self._fd = int(_libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify_init1")
        self._names: dict[int, set[str]] = {}
        try:
            # A step that appears while the way is being watched is on the next way.
            steps = way(path)
            self._watch(steps)
            while (again := way(path)) != steps:
                steps = again
                self._watch(steps)
            if not steps[-1].name:
                for name in within:
                    self._add(f"{steps[-1].directory}/{name}", "", _IN_CLOSE_WRITE | _NAMES)
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """For select, poll and epoll."""
        return self._fd

    def changed(self) -> bool:
        """Whether anything that matters has happened since this was last asked."""
        found = False
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _HEAD.unpack_from(data, offset)
                offset += _HEAD.size
                name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
                offset += length
                found |= self._matters(watch, mask, name)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def _matters(self, watch: int, mask: int, name: str) -> bool:
        if mask & (_IN_Q_OVERFLOW | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT | _IN_IGNORED):
            return True
        names = self._names.get(watch, set())
        return "" in names or name in names

    def _watch(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._add(step.directory, step.name, _NAMES if step.name else _NAMES | _IN_CLOSE_WRITE)

    def _add(self, directory: str, name: str, mask: int) -> None:
        watch = int(_libc.inotify_add_watch(self._fd, os.fsencode(directory), mask | _SELF))
        if watch >= 0:
            self._names.setdefault(watch, set()).add(name)
            return
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), directory)
        if not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            raise error
