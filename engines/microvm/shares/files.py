"""Operations on regular files and what is in them."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

from engines.microvm.shares import calls, fuse
from engines.microvm.shares.fuse import Request
from engines.microvm.shares.nodes import Node
from engines.microvm.shares.state import Share
from engines.microvm.shares.tree import kill_set_ids

# What of a guest's open(2) is the host's business. O_DIRECT is not: the guest's alignment says nothing of buffers here.
_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
_PERMISSIONS: Final = 0o7777
# A file that was changed so short a time ago may be changed again without a sign of it.
_SETTLED_NS: Final = 1_000_000_000
# FALLOC_FL_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE.
_FALLOCATE_MODES: Final = 0x1 | 0x2 | 0x10
# One request is not to keep all others waiting.
_COPY_MAX: Final = 64 << 20


def open_(share: Share, request: Request) -> bytes:
    """OPEN."""
    flags, more = request.fields(fuse.OPEN)
    share.handles.room()
    node = share.nodes.get(request.nodeid)
    return _opened(share, node, _open(share, node, flags, kill=bool(more & fuse.OPEN_KILL_SUIDGID)), flags)


def _opened(share: Share, node: Node, fd: int, flags: int) -> bytes:
    """What the guest is told of the descriptor, which is no longer the caller's."""
    try:
        told = _told(node, fd, flags)
    except OSError:
        os.close(fd)
        raise
    return fuse.OPEN_OUT.pack(share.handles.add(fd, node), told, 0)


def _open(share: Share, node: Node, flags: int, *, kill: bool) -> int:
    if node.kind != stat.S_IFREG:
        # The guest's kernel has its own fifos, sockets and devices; opening the host's could wait for ever, or worse.
        raise OSError(errno.ENXIO, "no regular file")
    if flags & (os.O_ACCMODE | os.O_TRUNC):
        share.nodes.changeable(node)
    if flags & os.O_TRUNC and kill:
        kill_set_ids(share, node)
    # Some of the kernel's own keep a reader waiting for news.
    more = share.without_trace(node) | (os.O_NONBLOCK if node.files.kernels else 0)
    return share.open(node, flags & _FLAGS | os.O_CLOEXEC | os.O_NOCTTY | more)


def _told(node: Node, fd: int, flags: int) -> int:
    """How the guest is to treat what it opened."""
    if node.files.kernels:
        return fuse.DIRECT_IO
    found = os.fstat(fd)
    stamp = found.st_mtime_ns, found.st_ctime_ns, found.st_size
    told = 0
    if stamp == node.stamp and time.time_ns() - found.st_ctime_ns > _SETTLED_NS:
        told = fuse.KEEP_CACHE
    node.stamp = stamp
    access = flags & os.O_ACCMODE
    # What is written through a mapping, and has to be told when it is closed, is of a file that can be read, too.
    if access == os.O_RDONLY or (access == os.O_WRONLY and not node.files.late):
        told |= fuse.NOFLUSH
    return told


def create(share: Share, request: Request) -> bytes:
    """CREATE."""
    flags, mode, _, more = request.fields(fuse.CREATE)
    name = request.name(fuse.CREATE.size)
    share.handles.room()
    share.nodes.room()
    parent = share.nodes.changeable_directory(request.nodeid)
    wanted = flags & _FLAGS | os.O_CLOEXEC | os.O_NOCTTY
    fd = -1
    try:
        fd = os.open(name, wanted | os.O_CREAT | os.O_EXCL, mode & _PERMISSIONS, dir_fd=parent.fd)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        node, found = _existing(share, parent, name)
    else:
        try:
            node, found = share.nodes.take(parent, os.open(share.path(fd), os.O_PATH | os.O_CLOEXEC))
        except OSError:
            os.close(fd)
            raise
    try:
        if fd < 0:
            fd = _open(share, node, flags, kill=bool(more & fuse.OPEN_KILL_SUIDGID))
        opened = _opened(share, node, fd, flags)
    except OSError:
        share.nodes.drop(node)
        raise
    return share.told(parent, node, found) + opened


def _existing(share: Share, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
    """What somebody else has made meanwhile."""
    node, found = share.nodes.look(parent, name)
    if node.kind != stat.S_IFREG:
        share.nodes.drop(node)
        # The guest's kernel looks once more, and sees what it is.
        raise OSError(errno.ESTALE, "no regular file")
    return node, found


def read(share: Share, request: Request) -> memoryview:
    """READ. The result is a part of ``share.data``."""
    fh, offset, size, _, _, _, _ = request.fields(fuse.READ)
    handle = share.handles.get(fh, request.nodeid)
    wanted = share.data[: min(size, fuse.MAX_WRITE)]
    return wanted[: os.preadv(handle.fd, [wanted], offset)]


def write(share: Share, request: Request) -> bytes:
    """WRITE."""
    fh, offset, size, flags, _, _, _ = request.fields(fuse.WRITE)
    data = request.body[fuse.WRITE.size :]
    if len(data) < size:
        raise OSError(errno.EINVAL, "less data than there should be")
    handle = share.handles.get(fh, request.nodeid)
    share.nodes.changeable(handle.node)
    if flags & fuse.WRITE_KILL_SUIDGID:
        kill_set_ids(share, handle.node)
    return fuse.SIZE_OUT.pack(os.pwritev(handle.fd, [data[:size]], offset), 0)


def release(share: Share, request: Request) -> bytes:
    """RELEASE, and RELEASEDIR."""
    (fh,) = request.fields(fuse.HANDLE)
    share.handles.get(fh, request.nodeid)
    share.handles.close(fh)
    return b""


def flush(share: Share, request: Request) -> bytes:
    """FLUSH: a descriptor of the guest's is closed. Some file systems say only then what has become of the data."""
    (fh,) = request.fields(fuse.HANDLE)
    handle = share.handles.get(fh, request.nodeid)
    if handle.node.files.late:
        os.close(os.dup(handle.fd))
    return b""


def fsync(share: Share, request: Request) -> bytes:
    """FSYNC, and FSYNCDIR."""
    fh, flags, _ = request.fields(fuse.FSYNC)
    fd = share.handles.get(fh, request.nodeid).fd
    if flags & fuse.FSYNC_DATA:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
    return b""


def lseek(share: Share, request: Request) -> bytes:
    """LSEEK, which is asked for holes and data alone."""
    fh, offset, whence, _ = request.fields(fuse.LSEEK)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise OSError(errno.EINVAL, "another kind of seeking")
    return fuse.OFFSET_OUT.pack(os.lseek(share.handles.get(fh, request.nodeid).fd, offset, whence))


def fallocate(share: Share, request: Request) -> bytes:
    """FALLOCATE."""
    fh, offset, length, mode, _ = request.fields(fuse.FALLOCATE)
    if mode & ~_FALLOCATE_MODES:
        raise OSError(errno.EOPNOTSUPP, "another kind of allocation")
    handle = share.handles.get(fh, request.nodeid)
    share.nodes.changeable(handle.node)
    calls.fallocate(handle.fd, mode, offset, length)
    return b""


def copy_file_range(share: Share, request: Request) -> bytes:
    """COPY_FILE_RANGE; a part of it, if it is much."""
    fh, offset, nodeid, to, to_offset, length, flags = request.fields(fuse.COPY)
    if flags:
        raise OSError(errno.EINVAL, "no flags are known")
    source, target = share.handles.get(fh, request.nodeid), share.handles.get(to, nodeid)
    share.nodes.changeable(target.node)
    copied = os.copy_file_range(source.fd, target.fd, min(length, _COPY_MAX), offset, to_offset)
    return fuse.SIZE_OUT.pack(copied, 0)
