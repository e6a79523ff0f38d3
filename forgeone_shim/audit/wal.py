"""What is written ahead of the tiles: groups of entries, each with the checkpoint that it leads to, in two segments.

A segment is a file whose blocks are all written before it is used, so that making a group durable changes nothing but
data: no block is allocated and no size grows. Each group begins on a block of its own. A write that is torn by a
crash therefore damages no group before it. The segments are written in turn, over what is in the tiles already.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from forgeone_shim.audit import tiles
from forgeone_shim.errors import FailedPrecondition

BLOCK: Final = 4096
SEGMENT: Final = 2 * 1024 * 1024
MAX_GROUP: Final = SEGMENT // 4
"""Bytes of entries in a group, but for the last of them: a segment has room for several groups of any size."""

MAX_COUNT: Final = 4096
_MAGIC: Final = b"FORGEAL1"
# Magic, index of the first entry, how many, bytes of the checkpoint's note and of the entries, hash over all of that.
_HEADER: Final = struct.Struct(">8sQIII32s")
# An entry may say the same in its text, and that may come to lie on a block's beginning. What follows there is, as a
# number, no less than this: text has no byte below a blank.
_NO_INDEX: Final = 0x20 << 56
_NAMES: Final = ("0", "1")


@dataclass(frozen=True, slots=True)
class Group:
    """Entries from index ``first`` on, durable together; ``note`` is the checkpoint of the log that ends with them.

    ``segment`` and ``until``: where it is, and where the next one begins, of a group that was read.
    """

    first: int
    entries: tuple[bytes, ...]
    note: bytes
    segment: int = field(default=0, compare=False)
    until: int = field(default=0, compare=False)

    @property
    def end(self) -> int:
        """The log's size with it."""
        return self.first + len(self.entries)


@dataclass(frozen=True, slots=True)
class Torn:
    """A group that is not whole. ``first`` is what its header says."""

    first: int
    offset: int


@dataclass(frozen=True, slots=True)
class Found:
    """What segments hold: groups in order of their entries, each of another place, and those that are not whole."""

    groups: tuple[Group, ...]
    torn: tuple[Torn, ...]


def encode(group: Group) -> bytes:
    """The group as it is written, in whole blocks."""
    body = tiles.bundle(group.entries)
    sizes = (group.first, len(group.entries), len(group.note), len(body))
    whole = b"".join((_HEADER.pack(_MAGIC, *sizes, _digest(sizes, group.note, body)), group.note, body))
    return whole.ljust(_blocks(len(whole)), b"\0")


def decode(data: bytes, segment: int = 0) -> Found:
    """What is in a segment, wherever it begins: a group that is not whole hides none behind it."""
    groups: list[Group] = []
    torn: list[Torn] = []
    at = 0
    while at + _HEADER.size <= len(data):
        magic, first, *_ = _HEADER.unpack_from(data, at)
        if magic != _MAGIC or first >= _NO_INDEX:
            at += BLOCK
            continue
        group = _decode(data, at, segment)
        if group is None:
            torn.append(Torn(first, at))
            at += BLOCK
        else:
            groups.append(group)
            at = group.until
    return Found(tuple(groups), tuple(torn))


def _decode(data: bytes, at: int, segment: int) -> Group | None:
    _, first, count, note_size, body_size, digest = _HEADER.unpack_from(data, at)
    start = at + _HEADER.size
    end = start + note_size + body_size
    if end > len(data):
        return None
    note, body = data[start : start + note_size], data[start + note_size : end]
    if _digest((first, count, note_size, body_size), note, body) != digest:
        return None
    try:
        entries = tuple(tiles.unbundle(body, count, "a group"))
    except FailedPrecondition:
        return None
    return Group(first, entries, note, segment, at + _blocks(end - at))


def _blocks(length: int) -> int:
    """Bytes of as many blocks as that takes."""
    return -(-length // BLOCK) * BLOCK


def _digest(sizes: tuple[int, int, int, int], note: bytes, body: bytes) -> bytes:
    return sha256(struct.pack(">QIII", *sizes) + note + body).digest()


def read(directory: Path) -> Found:
    """Everything that is in a log's segments; nothing where there are none.

    :raises OSError: they cannot be read.
    """
    groups: dict[int, Group] = {}
    torn: list[Torn] = []
    for segment, name in enumerate(_NAMES):
        try:
            with open(directory / name, "rb") as file:
                found = decode(file.read(SEGMENT), segment)
        except FileNotFoundError:
            continue
        torn += found.torn
        for group in found.groups:
            # Of two in one place the longer one was written later.
            before = groups.get(group.first)
            groups[group.first] = group if before is None or group.end >= before.end else before
    return Found(tuple(groups[first] for first in sorted(groups)), tuple(torn))


class Segments:
    """The two files, open for writing. One thread uses it."""

    def __init__(self, directory: Path, groups: Sequence[Group] = ()) -> None:
        """``groups`` are those that were read and are not in the tiles yet: what comes now is written after them.

        :raises OSError: they cannot be made, or there is no room for them.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        self._files: list[int] = []
        try:
            self._files += (_open(directory / name) for name in _NAMES)
        except BaseException:
            self.close()
            raise
        _sync(directory)
        # Of each, where the next group begins, and the size of the log with its last one.
        self._at, self._ends = [0, 0], [0, 0]
        self._current = groups[-1].segment if groups else 0
        for group in groups:
            self._at[group.segment], self._ends[group.segment] = group.until, group.end

    def room(self, length: int, settled: int) -> bool:
        """Whether so many bytes can be written now; else, once the tiles have what the other segment has.

        :param settled: the size of the log that is in the tiles.
        """
        if self._at[self._current] + length <= SEGMENT:
            return True
        other = 1 - self._current
        if self._ends[other] > settled:
            return False
        self._current, self._at[other] = other, 0
        return True

    def write(self, data: bytes, end: int) -> None:
        """Write an encoded group, that the log has ``end`` entries with, where :meth:`room` found room for it.

        It is on disk when this returns. Where it fails it may be repeated: all of it is written again.

        :raises OSError: it is not there, or not for good.
        """
        offset = self._at[self._current]
        written = os.pwritev(self._files[self._current], (data,), offset, os.RWF_DSYNC)
        if written != len(data):
            raise OSError(errno.ENOSPC, "the write came to an end early")
        self._at[self._current], self._ends[self._current] = offset + len(data), end

    def close(self) -> None:
        """Let go of the files."""
        for fd in self._files:
            os.close(fd)
        self._files.clear()


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_size < SEGMENT:
            _fill(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _fill(fd: int) -> None:
    # Blocks that are only reserved would be marked as written by the first write, which is a change of metadata.
    size = os.fstat(fd).st_size
    piece = bytes(256 * 1024)
    while size < SEGMENT:
        size += os.pwrite(fd, piece[: SEGMENT - size], size)
    os.fsync(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
