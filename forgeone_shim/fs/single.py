"""A tree of one file, written from a stream."""

from __future__ import annotations

import os
from errno import EDQUOT, ENOSPC
from pathlib import Path, PurePosixPath

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.fs.unpack import Stream

_PIECE = 1 << 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_file(tree: Path, file: str, stream: Stream, deadline: Deadline) -> tuple[int, int]:
    """Make ``tree`` with ``file`` (a relative path without dots) in it; returns its size and the count of directories.

    Everybody may read it, root owns it.
    """
    try:
        directory, directories = tree, 1
        _make(directory)
        for name in PurePosixPath(file).parts[:-1]:
            directory, directories = directory / name, directories + 1
            _make(directory)
        fd = os.open(tree / file, _FLAGS, 0o644)
        try:
            size = _copy(stream, fd, deadline)
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise ResourceExhausted(f"no room for {file}: {error.strerror}") from error
        raise
    return size, directories


def _make(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)


def _copy(stream: Stream, fd: int, deadline: Deadline) -> int:
    buffer, size = memoryview(bytearray(_PIECE)), 0
    while count := stream.readinto(buffer):
        deadline.check("while a file of an artifact was written")
        rest = buffer[:count]
        while rest:
            rest = rest[os.write(fd, rest) :]
        size += count
    return size
