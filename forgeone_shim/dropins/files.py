"""Configuration files that others drop into a directory: read anew only when they change, trusted only if root's alone.

Nothing watches: whoever asks sees the files as they are at that moment, for a stat(2) of each.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from forgeone_shim.errors import ForgeError

T = TypeVar("T")

_SIZE_MAX = 1 << 20
# A file changed twice within the file system's tick has the same times; one so young is read again.
_TICK_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class DropIn(Generic[T]):
    """A file of the directory numbered ``rank``: its ``value``, or ``None`` and why it cannot be used (``error``)."""

    path: str
    rank: int
    value: T | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Seen(Generic[T]):
    mark: tuple[int, ...]
    found: DropIn[T]


class DropIns(Generic[T]):
    """The files with one of ``suffixes`` in ``directories``. Safe to call from many threads.

    :param parse: makes a value of a file's path and bytes, or raises ForgeError saying what is wrong.
    """

    def __init__(self, directories: Sequence[str], suffixes: tuple[str, ...], parse: Callable[[str, bytes], T]) -> None:
        self._directories, self._suffixes, self._parse = tuple(directories), suffixes, parse
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen[T]] = {}

    def read(self) -> list[DropIn[T]]:
        """All files as they are now, by directory and then by name. A directory that is not there has none."""
        with self._lock:
            seen: dict[str, _Seen[T]] = {}
            for rank, directory in enumerate(self._directories):
                for path in self._paths(directory, rank, seen):
                    seen[path] = self._look(path, rank)
            self._seen = {path: one for path, one in seen.items() if one.mark}
            return [one.found for one in seen.values()]

    def _paths(self, directory: str, rank: int, seen: dict[str, _Seen[T]]) -> Iterator[str]:
        try:
            fault = untrusted(Path(directory).stat())
            names = [] if fault else sorted(os.listdir(directory))  # noqa: PTH208
        except FileNotFoundError:
            return
        except OSError as error:
            fault, names = error.strerror or str(error), []
        if fault:
            seen[directory] = _Seen((), DropIn(directory, rank, None, fault))
        for name in names:
            if name.endswith(self._suffixes) and not name.startswith("."):
                yield f"{directory}/{name}"

    def _look(self, path: str, rank: int) -> _Seen[T]:
        try:
            known, mark = self._seen.get(path), _mark(Path(path).stat())
            if known is not None and known.mark == mark:
                return known
            return _Seen(mark if time.time_ns() - mark[-1] > _TICK_NS else (), self._load(path, rank))
        except OSError as error:
            return _Seen((), DropIn(path, rank, None, error.strerror or str(error)))

    def _load(self, path: str, rank: int) -> DropIn[T]:
        # Not to be held up by a fifo of that name.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return DropIn(path, rank, None, "is not a regular file")
            if fault := untrusted(status):
                return DropIn(path, rank, None, fault)
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(_SIZE_MAX + 1)
        finally:
            os.close(fd)
        if len(data) > _SIZE_MAX:
            return DropIn(path, rank, None, f"is larger than {_SIZE_MAX} bytes")
        try:
            return DropIn(path, rank, self._parse(path, data))
        except ForgeError as error:
            return DropIn(path, rank, None, str(error))


def untrusted(status: os.stat_result) -> str:
    """Why others than root (or whoever runs this process) could have written it; ``""`` where they could not."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}, not to root"
    if status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid()):
        return f"can be written by group {status.st_gid}"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    return ""


def replaceable(path: str) -> str:
    """Why others than root could put another file at ``path``; ``""`` where they could not.

    That is for whoever can write to a directory on the way to it, unless its sticky bit keeps others' entries safe.
    A link on that way can be turned to another file of root's. OSError where a directory cannot be looked at.
    """
    for directory in _passed(path):
        status = directory.stat()
        fault = untrusted(status)
        if fault and not (status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid())):
            return f"{directory} {fault}"
    return ""


def _passed(path: str) -> Iterator[Path]:
    """The directories on the way to a file, and on the ways that its links take."""
    ways, links = [Path(path).absolute()], set[Path]()
    while ways:
        way = ways.pop()
        yield from way.parents
        for step in (way, *way.parents):
            if step not in links and step.is_symlink():
                links.add(step)
                ways.append(step.parent / step.readlink())


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mode,
        status.st_uid,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
