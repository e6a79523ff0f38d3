"""Removing and measuring directory trees whose content nobody vouches for: by descriptor, never through a symlink."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EEXIST, ENOTEMPTY

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(parent_fd: int, name: str | bytes) -> None:
    """Remove ``name`` in the directory ``parent_fd`` and all below it; a missing one is no error. Raises OSError.

    However deep the tree is, this takes two descriptors and no recursion: a directory that is not empty is moved up to
    the top of the tree before its own turn comes.
    """
    try:
        top = os.open(name, _OPEN, dir_fd=parent_fd)
    except FileNotFoundError:
        return
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent_fd)
        return
    try:
        serial = 0
        while subdirectories := _unlink_files(top):
            for child in subdirectories:
                if _removed_directory(top, child):
                    continue
                try:
                    fd = os.open(child, _OPEN, dir_fd=top)
                except FileNotFoundError:
                    continue
                try:
                    for grandchild in _unlink_files(fd):
                        if not _removed_directory(fd, grandchild):
                            serial = _move_up(fd, grandchild, top, serial)
                finally:
                    os.close(fd)
                _removed_directory(top, child)
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent_fd)


def _unlink_files(fd: int) -> list[bytes]:
    """Unlink all that is no directory; the names of the directories."""
    directories = []
    with os.scandir(fd) as found:
        for entry in found:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
    return directories


def _removed_directory(fd: int, name: bytes) -> bool:
    try:
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (ENOTEMPTY, EEXIST):
            return False
        raise
    return True


def _move_up(fd: int, name: bytes, top: int, serial: int) -> int:
    while True:
        serial += 1
        try:
            os.rename(name, b".%d" % serial, src_dir_fd=fd, dst_dir_fd=top)
        except FileNotFoundError:
            return serial
        except OSError as error:
            # The tree has a directory of that name itself.
            if error.errno not in (ENOTEMPTY, EEXIST):
                raise
        else:
            return serial


def tree_usage(root_fd: int) -> tuple[int, int]:
    """Bytes on disk and inodes of the tree at ``root_fd``, hard links counted once. Others may change it meanwhile."""
    from forgeone_shim.kernel.mounts import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
    status = os.fstat(root_fd)
    size, inodes = status.st_blocks * 512, 1
    linked: set[tuple[int, int]] = set()
    waiting = [b"."]
    while waiting:
        path = waiting.pop()
        try:
            fd = openat2(root_fd, path, os.O_RDONLY | os.O_DIRECTORY, resolve)
        except OSError:
            continue
        try:
            with os.scandir(fd) as found:
                for entry in found:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path + b"/" + os.fsencode(entry.name))
                    elif status.st_nlink > 1:
                        if (key := (status.st_dev, status.st_ino)) in linked:
                            continue
                        linked.add(key)
                    size += status.st_blocks * 512
                    inodes += 1
        finally:
            os.close(fd)
    return size, inodes
