"""What the operations work on: the nodes, what is open, and how a node's file is named."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Final

from engines.microvm.shares import fuse
from engines.microvm.shares.calls import Caller, Entries
from engines.microvm.shares.nodes import Node, Nodes

# The most that one call for a directory's entries gets; a guest's kernel asks for no more at once either.
_ENTRIES_SIZE: Final = 64 * 1024


def room(size: int) -> memoryview:
    """Memory for so many bytes, none of which is taken before it is written to."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def give_back(view: memoryview) -> None:
    """Let go of the memory of a :func:`room` in which nothing is."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


class Handle:
    """A file or directory that the guest has open."""

    __slots__ = ("fd", "node", "position")

    def __init__(self, fd: int, node: Node) -> None:
        self.fd, self.node = fd, node
        # Of a directory: where the next entries come from.
        self.position = 0


class Handles:
    """What is open, by the number that the guest knows it by."""

    def __init__(self, nodes: Nodes, limit: int) -> None:
        self._nodes, self._limit = nodes, limit
        self._handles: dict[int, Handle] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def room(self) -> None:
        """Raises OSError (ENFILE): nothing more can be opened."""
        if len(self._handles) >= self._limit:
            raise OSError(errno.ENFILE, "too many files are open in the guest")

    def add(self, fd: int, node: Node) -> int:
        """The number of what was opened; the descriptor is this one's."""
        try:
            self.room()
        except OSError:
            os.close(fd)
            raise
        self._last += 1
        self._handles[self._last] = Handle(fd, node)
        node.pins += 1
        return self._last

    def get(self, number: int, nodeid: int) -> Handle:
        """:raises OSError: (EBADF) no such file is open."""
        handle = self._handles.get(number)
        if handle is None or handle.node.id != nodeid:
            raise OSError(errno.EBADF, "no such open file")
        return handle

    def close(self, number: int) -> None:
        """The guest has closed it."""
        handle = self._handles.pop(number, None)
        if handle is not None:
            os.close(handle.fd)
            self._nodes.unpin(handle.node)

    def close_without_volume(self) -> None:
        """Close those that no volume leads to any more."""
        for number in [number for number, handle in self._handles.items() if not handle.node.volumes]:
            self.close(number)


class Share:
    """Everything that is served.

    ``paths`` is put before a descriptor's number to make a path of it: that of /proc/self/fd, or nothing in a process
    whose working directory this is. ``news`` looks whether there are orders that have not been taken yet.
    """

    def __init__(self, nodes: Nodes, handles: Handles, *, paths: str, news: Callable[[], None]) -> None:
        self.nodes, self.handles = nodes, handles
        self._paths, self.news = paths, news
        self.caller = Caller()
        self.entries = Entries(_ENTRIES_SIZE)
        # An answer to READ, which is sent before there is another.
        self.answer = room(fuse.OUT_HEADER.size + fuse.MAX_WRITE)
        self.data = self.answer[fuse.OUT_HEADER.size :]

    def path(self, fd: int) -> str:
        """What leads to the very file that a descriptor is of, be it a symlink."""
        return f"{self._paths}{fd}"

    def open(self, node: Node, flags: int) -> int:
        """open(2) of the very file."""
        with self._outdated(node):
            return os.open(self.path(node.fd), flags)

    def stat(self, node: Node) -> os.stat_result:
        """fstat(2) of it."""
        with self._outdated(node):
            return os.fstat(node.fd)

    @contextlib.contextmanager
    def _outdated(self, node: Node) -> Iterator[None]:
        """ESTALE: on its server the file is gone. The guest's kernel looks once more, and is to find what is there."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ESTALE:
                self.nodes.outdate(node)
            raise

    def without_trace(self, node: Node) -> int:
        """How to open what may not be changed: that it was read is not seen either."""
        return 0 if self.nodes.may_change(node) else os.O_NOATIME

    def told(self, parent: Node, node: Node, found: os.stat_result) -> bytes:
        """The entry that tells the guest of a node, which it counts from now on."""
        node.lookups += 1
        valid = 0 if self.nodes.at_other_places(parent) else fuse.VALID_NS
        return fuse.entry(node.id, found, node.ino(found), valid_ns=valid)

    def remove_volume(self, number: int) -> None:
        """Let go of a volume, and of what is open of it."""
        if self.nodes.remove_volume(number):
            self.handles.close_without_volume()
