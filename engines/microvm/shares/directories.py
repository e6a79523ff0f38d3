"""Operations on directories' entries."""

from __future__ import annotations

import errno
import os
from typing import Final

from engines.microvm.shares import fuse
from engines.microvm.shares.fuse import Request
from engines.microvm.shares.nodes import Node
from engines.microvm.shares.state import Share

_HIDDEN: Final = (b".", b"..")
# An entry with the longest name (struct linux_dirent64).
_LONGEST: Final = 280
# How much longer an answer with attributes is than the entries, at least.
_PLUS: Final = 5


def opendir(share: Share, request: Request) -> bytes:
    """OPENDIR."""
    share.handles.room()
    node = share.nodes.directory(request.nodeid)
    fd = share.open(node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | share.without_trace(node))
    return fuse.OPEN_OUT.pack(share.handles.add(fd, node), 0, 0)


def readdir(share: Share, request: Request) -> bytes:
    """READDIR."""
    return _read(share, request, plus=False)


def readdirplus(share: Share, request: Request) -> bytes:
    """READDIRPLUS: with each entry what LOOKUP would have said of it."""
    return _read(share, request, plus=True)


def _read(share: Share, request: Request, *, plus: bool) -> bytes:
    fh, offset, size, _, _, _, _ = request.fields(fuse.READ)
    handle = share.handles.get(fh, request.nodeid)
    node = share.nodes.directory(request.nodeid)
    if offset != handle.position:
        os.lseek(handle.fd, offset, os.SEEK_SET)
        handle.position = offset
    size = min(size, fuse.MAX_WRITE)
    answer = bytearray()
    full = False
    for ino, position, kind, name in share.entries.read(handle.fd, max(_LONGEST, size // _PLUS if plus else size)):
        # Where the descriptor is once all have been read; what there is no room for is asked for from its offset.
        handle.position = position
        if full:
            continue
        one = fuse.dirent(ino ^ node.files.mixin, position, kind, name)
        full = len(answer) + len(one) + (len(fuse.NO_ENTRY) if plus else 0) > size
        if not full:
            answer += _known(share, node, name) + one if plus else one
    if full and not answer:
        raise OSError(errno.EINVAL, "no room for an entry")
    return bytes(answer)


def _known(share: Share, parent: Node, name: bytes) -> bytes:
    """What there is to tell of an entry, or nothing: then the guest asks, and is told why."""
    if name in _HIDDEN:
        return fuse.NO_ENTRY
    try:
        node, found = share.nodes.look(parent, name)
    except OSError:
        return fuse.NO_ENTRY
    return share.told(parent, node, found)
