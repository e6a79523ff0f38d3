"""What the guest knows of the host's files: a node for each, which holds its file by a descriptor (O_PATH).

A node's file is only ever reached by that descriptor, and another one only by a name in a directory that is a node, so
whatever becomes of paths on the host, the guest sees what is below its volumes and nothing else. A file has one node
however many names and volumes lead to it, so that in the guest, too, it is one file with one cache and one set of
locks. Which volumes have led to it is kept: those say whether it may be changed, and once all of them are gone it is.
A directory has a node in each volume, as a kernel has a directory at one place only. So has a file of a volume that the
host has mounted read-only, as by its descriptor nothing can be written that another volume may write to.

What one container changes in a directory the guest's kernel knows of that place alone. Where the same directory is at
another place, too, it is told to believe nothing of names there.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from engines.microvm.shares import calls
from engines.microvm.shares.fuse import ROOT_ID

_LINK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Inode numbers are told apart by their file system in these upper bits, which hardly any uses.
_INO_BITS: Final = 52
_DEVICES_MAX: Final = 1 << (64 - _INO_BITS)
# The root's own, which never is one of a volume's that may be written to.
_ROOT_BIT: Final = 1
# Device, inode, kind, and the volume of what has a node in each.
Key = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What a file is on, by device number. ``kernels``: its files are the kernel's own. ``late``: see calls."""

    mixin: int
    kernels: bool
    late: bool


class Node:
    """A file of the host's.

    ``volumes`` is a set of bits, one with a directory; ``lookups`` counts what the guest has to forget, ``pins`` what
    else holds the node. ``borrowed``: it keeps the host from unmounting what it is on.
    """

    __slots__ = ("borrowed", "fd", "files", "id", "key", "kind", "lookups", "pins", "stamp", "volumes")

    def __init__(self, nodeid: int, fd: int, key: Key, files: FileSystem) -> None:
        self.id, self.fd, self.key, self.kind, self.files = nodeid, fd, key, key[2], files
        self.lookups = self.pins = self.volumes = 0
        self.borrowed = False
        # Times of change and size when a guest that had it open last was told to keep what it has read of it.
        self.stamp: tuple[int, int, int] | None = None

    def ino(self, found: os.stat_result) -> int:
        """Its number for the guest, where files of many file systems are in one."""
        return ROOT_ID if self.id == ROOT_ID else found.st_ino ^ self.files.mixin


@dataclass(slots=True)
class _Volume:
    """Where it begins, its bit, and the numbers that it is served as, each with whether it may be written to by it."""

    root: Node
    bit: int
    common: bool
    numbers: dict[int, bool] = field(default_factory=dict)


class Nodes:
    """All of them, and the volumes. Every method raises OSError for the guest to be told."""

    def __init__(self, root: int, limit: int) -> None:
        """``root``: a descriptor of an empty directory, what the guest sees above its volumes; now this one's.

        ``limit``: how many nodes there may be.
        """
        self._limit = limit
        self._by_id: dict[int, Node] = {}
        self._by_key: dict[Key, Node] = {}
        self._devices: dict[tuple[int, bool, bool], FileSystem] = {}
        self._volumes: dict[int, _Volume] = {}
        self._live, self._writable = _ROOT_BIT, 0
        # Volumes whose files are nobody else's, and where each begins.
        self._apart = 0
        # Volumes that are of the host's own mounts, and how many nodes are on those below them.
        self._hosts = 0
        self.borrowed = 0
        self._roots: dict[int, Node] = {}
        # By device and inode of a directory: the volumes that it is in.
        self._places: dict[tuple[int, int], int] = {}
        self._last = ROOT_ID
        key = self._key(os.fstat(root), _ROOT_BIT)
        self._by_id[ROOT_ID] = Node(ROOT_ID, root, key, FileSystem(0, kernels=False, late=False))
        self._by_id[ROOT_ID].volumes = _ROOT_BIT
        self._by_id[ROOT_ID].pins = 1

    def __len__(self) -> int:
        return len(self._by_id)

    # -- volumes

    def add_volume(self, number: int, fd: int, *, readonly: bool, common: bool = False, live: bool = False) -> None:
        """Serve what ``fd`` (O_PATH, now this one's) is of as ``number``.

        ``common``: a directory that is served so already is the same one in the guest, where a change is told of by
        inotify then, and may be written to while one of its numbers may. ``live``: its mounts are the host's own.
        """
        try:
            if number in self._volumes:
                raise OSError(errno.EEXIST, f"volume {number} is there already")
            found = os.fstat(fd)
            if stat.S_ISLNK(found.st_mode):
                raise OSError(errno.ELOOP, f"volume {number} is a symlink")
            apart = not readonly and os.fstatvfs(fd).f_flag & os.ST_RDONLY
        except OSError:
            os.close(fd)
            raise
        volume = self._same(found) if common and not apart else None
        if volume is not None:
            os.close(fd)
        else:
            bit = self._free_bit()
            self._apart = self._apart | bit if apart else self._apart & ~bit
            self._hosts = self._hosts | bit if live else self._hosts & ~bit
            volume = _Volume(self._adopt(fd, found, bit), bit, common)
            volume.root.pins += 1
            self._roots[bit] = volume.root
            self._live |= bit
        volume.numbers[number] = not readonly
        self._volumes[number] = volume
        self._set_writable(volume)

    def _same(self, found: os.stat_result) -> _Volume | None:
        for volume in self._volumes.values():
            if volume.common and volume.root.key == self._key(found, volume.bit):
                return volume
        return None

    def _set_writable(self, volume: _Volume) -> None:
        self._writable &= ~volume.bit
        if any(volume.numbers.values()):
            self._writable |= volume.bit

    def _free_bit(self) -> int:
        """The lowest bit that no volume has."""
        return ~self._live & (self._live + 1)

    def remove_volume(self, number: int) -> list[Node]:
        """Let go of it, and of the files of all nodes that only it led to; those are returned."""
        volume = self._volumes.pop(number, None)
        if volume is None:
            return []
        del volume.numbers[number]
        self._set_writable(volume)
        if volume.numbers:
            return []
        root, bit = volume.root, volume.bit
        self._live &= ~bit
        del self._roots[bit]
        root.pins -= 1
        gone = []
        for node in self._by_id.values():
            if node.volumes & bit:
                node.volumes &= ~bit
                if not node.volumes:
                    gone.append(node)
        for node in gone:
            # The guest may count it still: its number is nobody else's.
            self._drop_file(node)
            self.drop(node)
        self.drop(root)
        return gone

    def volume(self, number: int) -> Node | None:
        """Where it begins."""
        found = self._volumes.get(number)
        return None if found is None else found.root

    # -- nodes

    def get(self, nodeid: int) -> Node:
        """:raises OSError: (ESTALE) there is none, or its volume is gone."""
        node = self._by_id.get(nodeid)
        if node is None or not node.volumes:
            raise OSError(errno.ESTALE, "no such node")
        return node

    def directory(self, nodeid: int) -> Node:
        """As :meth:`get`, for one that has entries."""
        node = self.get(nodeid)
        if node.kind != stat.S_IFDIR:
            raise OSError(errno.ENOTDIR, "no directory")
        return node

    def room(self) -> None:
        """Raises OSError (ENFILE): nothing can be made that would be a node."""
        if len(self._by_id) >= self._limit:
            raise OSError(errno.ENFILE, "too many files are known to the guest")

    def changeable(self, node: Node) -> Node:
        """The node. Raises OSError (EROFS): no volume that may be written to leads to it, or it is the kernel's."""
        if not self.may_change(node):
            raise OSError(errno.EROFS, "read-only volume")
        return node

    def may_change(self, node: Node) -> bool:
        """Whether :meth:`changeable` would return."""
        return bool(node.volumes & self._writable) and not node.files.kernels

    def changeable_directory(self, nodeid: int) -> Node:
        """A directory whose entries may be changed."""
        return self.changeable(self.directory(nodeid))

    def look(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """The node of an entry; the guest does not count it yet, so it is to be told of it.

        ESTALE: the host has removed the directory. The guest's kernel then looks again from where it began, and goes
        by nothing that it was told before.
        """
        try:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            if not os.fstat(parent.fd).st_nlink:
                raise OSError(errno.ESTALE, "a directory that is gone") from None
            raise
        # While it is a node its inode's number cannot be another's.
        node = self._by_key.get(self._key(found, parent.volumes))
        if node is not None:
            node.volumes |= parent.volumes
        else:
            fd = os.open(name, _LINK, dir_fd=parent.fd)
            try:
                found = os.fstat(fd)
            except OSError:
                os.close(fd)
                raise
            node = self._adopt(fd, found, parent.volumes)
        return node, found

    def take(self, parent: Node, fd: int) -> tuple[Node, os.stat_result]:
        """The node of what a descriptor (O_PATH, now this one's) is of, that was made in ``parent``."""
        try:
            found = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        return self._adopt(fd, found, parent.volumes), found

    def _adopt(self, fd: int, found: os.stat_result, bit: int) -> Node:
        """The node of a file that the volume leads to."""
        key = self._key(found, bit)
        node = self._by_key.get(key)
        if node is not None:
            os.close(fd)
            node.volumes |= bit
            return node
        try:
            self.room()
            files = self._file_system(fd, found.st_dev)
        except OSError:
            os.close(fd)
            raise
        self._last += 1
        node = Node(self._last, fd, key, files)
        node.volumes = bit
        root = self._roots.get(bit)
        if bit & self._hosts and root is not None and root.key[0] != found.st_dev:
            node.borrowed = True
            self.borrowed += 1
        self._by_id[node.id] = self._by_key[key] = node
        if node.kind == stat.S_IFDIR:
            self._places[key[:2]] = self._places.get(key[:2], 0) | bit
        return node

    def _file_system(self, fd: int, device: int) -> FileSystem:
        # Asked of each file: a device's number is another's once it is unmounted.
        kernels, late = calls.filesystem(fd)
        files = self._devices.get((device, kernels, late))
        if files is None:
            if len(self._devices) >= _DEVICES_MAX:
                self._devices.clear()
            files = FileSystem(len(self._devices) << _INO_BITS, kernels=kernels, late=late)
            self._devices[device, kernels, late] = files
        return files

    def forget(self, nodeid: int, lookups: int) -> None:
        """The guest counts it so many times less."""
        node = self._by_id.get(nodeid)
        if node is not None and nodeid != ROOT_ID:
            node.lookups = max(0, node.lookups - lookups)
            self.drop(node)

    def unpin(self, node: Node) -> None:
        """What was open of it is closed."""
        node.pins -= 1
        self.drop(node)

    def drop(self, node: Node) -> None:
        """Let go of a node that neither the guest counts nor anything else holds."""
        if not node.lookups and node.pins <= 0 and self._by_id.pop(node.id, None) is not None:
            self._drop_file(node)

    def _drop_file(self, node: Node) -> None:
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1
            self.borrowed -= node.borrowed
        self.outdate(node)

    def outdate(self, node: Node) -> None:
        """What is found with its numbers from now on is another file: servers of files use them again."""
        if self._by_key.get(node.key) is not node:
            return
        del self._by_key[node.key]
        place, bit = node.key[:2], node.key[3]
        if node.kind == stat.S_IFDIR:
            self._places[place] &= ~bit
            if not self._places[place]:
                del self._places[place]

    def at_other_places(self, directory: Node) -> bool:
        """Whether another volume has the directory, or all that its volume has, and one of them may be written to."""
        return self._several(directory) or self._several(self._roots.get(directory.volumes, directory))

    def _several(self, directory: Node) -> bool:
        places = self._places.get(directory.key[:2], 0)
        return bool(places & (places - 1) and places & self._writable)

    def _key(self, found: os.stat_result, bit: int) -> Key:
        kind = stat.S_IFMT(found.st_mode)
        return found.st_dev, found.st_ino, kind, bit if kind == stat.S_IFDIR or bit & self._apart else 0
