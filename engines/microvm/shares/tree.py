"""Operations on names and on what a file says of itself."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from engines.microvm.shares import calls, fuse
from engines.microvm.shares.fuse import ROOT_ID, Request, Set
from engines.microvm.shares.nodes import Node
from engines.microvm.shares.state import Share

_LINK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS: Final = 0o7777
_VOLUME_DIGITS: Final = 10
# Nothing that stands for a device of the host's.
_MADE: Final = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK})
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


def lookup(share: Share, request: Request) -> bytes:
    """LOOKUP."""
    name = request.name()
    if request.nodeid == ROOT_ID:
        node = _volume(share, name)
        return share.told(share.nodes.get(ROOT_ID), node, os.fstat(node.fd))
    parent = share.nodes.directory(request.nodeid)
    return share.told(parent, *share.nodes.look(parent, name))


def _volume(share: Share, name: bytes) -> Node:
    if not name.isdigit() or len(name) > _VOLUME_DIGITS or name.startswith(b"0"):
        raise OSError(errno.ENOENT, "no volume")
    node = share.nodes.volume(int(name))
    if node is None:
        share.news()
        node = share.nodes.volume(int(name))
    if node is None:
        raise OSError(errno.ENOENT, "no volume")
    return node


def forget(share: Share, request: Request) -> None:
    """FORGET."""
    (lookups,) = request.fields(fuse.FORGET)
    share.nodes.forget(request.nodeid, lookups)


def batch_forget(share: Share, request: Request) -> None:
    """BATCH_FORGET; more than its length has room for are not there."""
    count, _ = request.fields(fuse.COUNT)
    data = request.body[fuse.COUNT.size :]
    count = min(count, len(data) // fuse.FORGET_ONE.size)
    for nodeid, lookups in fuse.FORGET_ONE.iter_unpack(data[: count * fuse.FORGET_ONE.size]):
        share.nodes.forget(nodeid, lookups)


def getattr_(share: Share, request: Request) -> bytes:
    """GETATTR."""
    node = share.nodes.get(request.nodeid)
    found = share.stat(node)
    return fuse.attr_out(found, node.ino(found))


def setattr_(share: Share, request: Request) -> bytes:
    """SETATTR."""
    valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = request.fields(fuse.SETATTR)
    node = share.nodes.changeable(share.nodes.get(request.nodeid))
    path = share.path(node.fd)
    # A change of owner takes set-id bits away, so that a mode comes after it.
    if valid & (Set.UID | Set.GID):
        os.chown(path, uid if valid & Set.UID else -1, gid if valid & Set.GID else -1)
    if valid & Set.MODE:
        if node.kind == stat.S_IFLNK:
            raise OSError(errno.EOPNOTSUPP, "a symlink has no mode")
        calls.set_mode(path, mode & _PERMISSIONS)
    if valid & Set.SIZE:
        if node.kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, "no regular file")
        if valid & Set.KILL_SUIDGID:
            kill_set_ids(share, node)
        if valid & Set.FH:
            os.ftruncate(share.handles.get(fh, node.id).fd, size)
        else:
            os.truncate(path, size)
    if valid & (Set.ATIME | Set.MTIME):
        calls.set_times(
            path,
            (atime, atime_ns) if valid & Set.ATIME else None,
            (mtime, mtime_ns) if valid & Set.MTIME else None,
            (bool(valid & Set.ATIME_NOW), bool(valid & Set.MTIME_NOW)),
        )
    found = os.fstat(node.fd)
    return fuse.attr_out(found, node.ino(found))


def kill_set_ids(share: Share, node: Node) -> None:
    """What the kernel does when someone writes who is not privileged, which this process is."""
    mode = os.fstat(node.fd).st_mode
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        calls.set_mode(share.path(node.fd), stat.S_IMODE(kept))


def readlink(share: Share, request: Request) -> bytes:
    """READLINK."""
    node = share.nodes.get(request.nodeid)
    if node.kind != stat.S_IFLNK:
        raise OSError(errno.EINVAL, "no symlink")
    return os.readlink(b"", dir_fd=node.fd)


def symlink(share: Share, request: Request) -> bytes:
    """SYMLINK."""
    parent = _parent(share, request)
    name, target = request.texts(2)
    fuse.check_name(name)
    os.symlink(target, name, dir_fd=parent.fd)
    return _made(share, parent, name)


def mknod(share: Share, request: Request) -> bytes:
    """MKNOD."""
    mode, _, _, _ = request.fields(fuse.MKNOD)
    parent, name = _parent(share, request), request.name(fuse.MKNOD.size)
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind not in _MADE:
        raise OSError(errno.EPERM, "no devices are made on the host")
    os.mknod(name, kind | mode & _PERMISSIONS, dir_fd=parent.fd)
    return _made(share, parent, name)


def mkdir(share: Share, request: Request) -> bytes:
    """MKDIR."""
    mode, _ = request.fields(fuse.MKDIR)
    parent, name = _parent(share, request), request.name(fuse.MKDIR.size)
    os.mkdir(name, mode & _PERMISSIONS, dir_fd=parent.fd)
    return _made(share, parent, name)


def _parent(share: Share, request: Request) -> Node:
    share.nodes.room()
    return share.nodes.changeable_directory(request.nodeid)


def _made(share: Share, parent: Node, name: bytes) -> bytes:
    return share.told(parent, *share.nodes.take(parent, os.open(name, _LINK, dir_fd=parent.fd)))


def link(share: Share, request: Request) -> bytes:
    """LINK. A file that may not be changed is given no name at which it could be."""
    (nodeid,) = request.fields(fuse.LINK)
    parent, name = share.nodes.changeable_directory(request.nodeid), request.name(fuse.LINK.size)
    node = share.nodes.changeable(share.nodes.get(nodeid))
    if node.kind == stat.S_IFDIR:
        raise OSError(errno.EPERM, "a directory")
    if not node.volumes & parent.volumes:
        raise OSError(errno.EXDEV, "another volume")
    os.link(share.path(node.fd), name, dst_dir_fd=parent.fd, follow_symlinks=True)
    return share.told(parent, node, os.fstat(node.fd))


def unlink(share: Share, request: Request) -> bytes:
    """UNLINK."""
    os.unlink(request.name(), dir_fd=share.nodes.changeable_directory(request.nodeid).fd)
    return b""


def rmdir(share: Share, request: Request) -> bytes:
    """RMDIR."""
    os.rmdir(request.name(), dir_fd=share.nodes.changeable_directory(request.nodeid).fd)
    return b""


def rename(share: Share, request: Request) -> bytes:
    """RENAME."""
    (new,) = request.fields(fuse.RENAME)
    return _rename(share, request, new, 0, fuse.RENAME.size)


def rename2(share: Share, request: Request) -> bytes:
    """RENAME2."""
    new, flags, _ = request.fields(fuse.RENAME2)
    if flags not in (0, _RENAME_NOREPLACE, _RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, "another kind of renaming")
    return _rename(share, request, new, flags, fuse.RENAME2.size)


def _rename(share: Share, request: Request, new: int, flags: int, after: int) -> bytes:
    source, target = share.nodes.changeable_directory(request.nodeid), share.nodes.changeable_directory(new)
    if source.volumes != target.volumes:
        raise OSError(errno.EXDEV, "another volume")
    old_name, new_name = request.names(2, after)
    calls.rename(source.fd, old_name, target.fd, new_name, flags)
    return b""


def statfs(share: Share, request: Request) -> bytes:
    """STATFS."""
    return fuse.statfs(os.fstatvfs(share.nodes.get(request.nodeid).fd))
