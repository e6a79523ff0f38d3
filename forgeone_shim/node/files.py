"""Files of a node, replaced whole: a reader sees the old or the new, and so does whoever comes after a power cut."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from forgeone_shim.errors import syscall_error


def read(path: Path) -> bytes | None:
    """The file's content; ``None`` where there is none.

    :raises InternalError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise syscall_error("read", path, error) from None


def replace(path: Path, content: bytes, *, mode: int) -> None:
    """Have ``path`` hold ``content``, on disk. Its directory is made; an owner and a mode that it had stay.

    :raises InternalError: it cannot be written; ``path`` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                with contextlib.suppress(FileNotFoundError):
                    had = path.stat()
                    os.fchown(file.fileno(), had.st_uid, had.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(had.st_mode))
                file.flush()
                os.fsync(file.fileno())
            Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise syscall_error("write", path, error) from None


def remove(path: Path) -> None:
    """Have no file or link there, on disk.

    :raises InternalError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            sync(path.parent)
    except OSError as error:
        raise syscall_error("remove", path, error) from None


def link(path: Path, target: str) -> None:
    """Have ``path`` be a symlink to ``target``, in one step.

    :raises InternalError: something else than a link is in the way, or it cannot be made.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.rename(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise syscall_error("link", path, error) from None


def readlink(path: Path) -> str | None:
    """Where a symlink leads; ``None`` where there is none.

    :raises InternalError: something else is there.
    """
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise syscall_error("readlink", path, error) from None


def sync(directory: Path) -> None:
    """What a directory lists, on disk."""
    with opened(directory) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    """A directory's descriptor for the block."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
