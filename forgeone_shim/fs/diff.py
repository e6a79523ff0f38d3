"""A container's writable layer as a layer archive, in the format of image layers.

https://github.com/opencontainers/image-spec/blob/main/layer.md: what was deleted is a ``.wh.NAME``, a directory that
hides what was there below has ``.wh..wh..opq`` in it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from forgeone_shim.deadline import Deadline, Punctual

_STAGE = "while the files of a container were saved"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
# Overlayfs marks its own directories and files with these; nothing of them belongs to the container.
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_OPAQUE_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")


def write(upper: Path, out: IO[bytes], deadline: Deadline) -> list[str]:
    """Write the tree as a tar; returns the paths that are deleted in it, relative to the root.

    :raises OSError: the tree cannot be read, or the archive not written.
    """
    deleted: list[str] = []
    links: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path, name in _walk(upper):
            deadline.check(_STAGE)
            status = path.lstat()
            if stat.S_ISSOCK(status.st_mode):
                # A socket's file is nothing without its process, which makes it again.
                continue
            if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
                deleted.append(name)
                folder, _, last = name.rpartition("/")
                archive.addfile(tarfile.TarInfo(f"{folder}/{_WHITEOUT}{last}" if folder else f"{_WHITEOUT}{last}"))
                continue
            info = _described(path, name, status)
            if stat.S_ISREG(status.st_mode):
                first = links.setdefault((status.st_dev, status.st_ino), name) if status.st_nlink > 1 else name
                if first != name:
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
                    archive.addfile(info)
                    continue
                with path.open("rb") as content:
                    archive.addfile(info, cast(IO[bytes], Punctual(content, deadline, _STAGE)))
                continue
            archive.addfile(info)
            if stat.S_ISDIR(status.st_mode) and _is_opaque(path):
                archive.addfile(tarfile.TarInfo(f"{name}/{_OPAQUE}"))
    return deleted


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Parents before what is in them."""
    # Not by recursion: whoever made the tree chose how deep it is.
    folders = [""]
    while folders:
        name = folders.pop()
        for entry in sorted(os.scandir(root / name), key=lambda one: one.name):
            below = f"{name}/{entry.name}" if name else entry.name
            yield Path(entry.path), below
            if entry.is_dir(follow_symlinks=False):
                folders.append(below)


def _described(path: Path, name: str, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    info.mtime = status.st_mtime
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif stat.S_ISFIFO(status.st_mode):
        info.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(status.st_mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    else:
        info.size = status.st_size
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in _attributes(path)
    }
    return info


def _attributes(path: Path) -> Iterator[tuple[str, bytes]]:
    with contextlib.suppress(OSError):
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            if not key.startswith(_OVERLAY):
                yield key, os.getxattr(path, key, follow_symlinks=False)


def _is_opaque(path: Path) -> bool:
    for mark in _OPAQUE_MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(path, mark, follow_symlinks=False) == b"y":
                return True
    return False
