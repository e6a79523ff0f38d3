"""An initrd: an archive of cpio's ``newc`` format (Documentation/driver-api/early-userspace/buffer-format.rst).

The same entries give the same bytes: there are no times in it, and everything is root's.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a directory by its path, without the leading slash; ``mode`` with its type."""

    path: str
    mode: int
    content: bytes = b""


def directory(path: str) -> Entry:
    """A directory that all can read."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, content)


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries in their order: a directory comes before what is in it."""
    return b"".join(_packed(entries))


def _packed(entries: Iterable[Entry]) -> Iterator[bytes]:
    for number, entry in enumerate(entries, 1):
        yield from _member(number, entry)
    yield from _member(0, Entry(_TRAILER, 0))


def _member(number: int, entry: Entry) -> Iterator[bytes]:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in numbers)
    for part in (header + name, entry.content):
        yield part
        yield bytes(-len(part) % 4)
