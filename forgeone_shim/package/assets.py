"""A directory as a tar whose bytes depend on nothing but the names, bytes and executable bits of its files."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from forgeone_shim.errors import InvalidInput
from forgeone_shim.fs import tar
from forgeone_shim.package.manifest import MAX_ASSETS

MODULE_FILE: Final = "module.wasm"
"""What the module is called in its container."""

_MAX_FILES: Final = 100_000
_CHUNK: Final = 1 << 20
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def pieces(directory: Path) -> Iterator[bytes]:
    """The archive, a piece at a time: owned by root, from 1970, in the order of the names' bytes.

    :raises InvalidInput: there is what no package holds (a link, a device), or too much of it.
    """
    size = 0
    for count, (name, path) in enumerate(_walk(directory)):
        if count >= _MAX_FILES:
            raise InvalidInput("assets", f"{directory} holds more than {_MAX_FILES} files")
        for piece in _member(name, path):
            size += len(piece)
            if size > MAX_ASSETS:
                raise InvalidInput("assets", f"{directory} holds more than {MAX_ASSETS} bytes")
            yield piece
    yield bytes(2 * tar.BLOCK)


def check(archive: BinaryIO) -> int:
    """Refuse an archive that holds what no package holds; returns how many members it has. From its beginning on.

    :raises InvalidInput: naming the member.
    """
    source = _Blocks(archive)
    seen: set[str] = set()
    for entry in tar.entries(source):
        name = entry.name.decode("utf-8", "replace").rstrip("/")
        if entry.type not in (tar.REGULAR, tar.DIRECTORY) or entry.sparse is not None or entry.xattrs:
            raise InvalidInput("assets", f"{tar.quoted(entry.name)} is neither a plain file nor a directory")
        if entry.mode & ~0o777 or entry.uid or entry.gid:
            raise InvalidInput("assets", f"{tar.quoted(entry.name)} is not root's, or has special bits")
        _check_name(name)
        if name in seen or len(seen) >= _MAX_FILES:
            raise InvalidInput("assets", f"{tar.quoted(entry.name)} is there twice, or one too many")
        seen.add(name)
        source.skip(entry.size)
    return len(seen)


def _walk(directory: Path) -> Iterator[tuple[str, Path]]:
    """Files and directories below, a directory before what is in it."""

    def inside(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
        try:
            found = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
        except OSError as error:
            raise InvalidInput("assets", f"{folder}: {error.strerror}") from None
        for path in found:
            name = prefix + path.name
            _check_name(name)
            yield name, path
            if path.is_dir() and not path.is_symlink():
                yield from inside(path, f"{name}/")

    return inside(directory, "")


def _check_name(name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise InvalidInput("assets", f"{name[:200]!a} is no relative path of printable characters")
    # An overlay's marks for what it hides (image-spec layer.md).
    if any(part.startswith(".wh.") for part in parts):
        raise InvalidInput("assets", f"{name[:200]!a} would hide a file")
    if parts[0] == MODULE_FILE:
        raise InvalidInput("assets", f"{name!a} is where the module goes", fix="give it another name")


def _member(name: str, path: Path) -> Iterator[bytes]:
    try:
        fd = os.open(path, _OPEN)
    except OSError as error:
        why = "is a link, which no package holds" if path.is_symlink() else error.strerror
        raise InvalidInput("assets", f"{path}: {why}") from None
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        info = tarfile.TarInfo(name)
        if stat.S_ISDIR(status.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            yield info.tobuf(tarfile.GNU_FORMAT)
            return
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("assets", f"{path}: is neither a plain file nor a directory")
        info.mode, info.size = (0o755 if status.st_mode & stat.S_IXUSR else 0o644), status.st_size
        yield info.tobuf(tarfile.GNU_FORMAT)
        left = status.st_size
        while left:
            piece = os.read(fd, min(left, _CHUNK))
            if not piece:
                raise InvalidInput("assets", f"{path}: it became shorter while it was read")
            left -= len(piece)
            yield piece
        yield bytes(-status.st_size % tar.BLOCK)


class _Blocks:
    """A file as what an archive is read from."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def block(self) -> bytes | None:
        data = self._file.read(tar.BLOCK)
        if data and len(data) != tar.BLOCK:
            raise tar.bad("it ends inside a member")
        return data or None

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise tar.bad("it ends inside a member")
        return data

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.take(min(count, _CHUNK)))
