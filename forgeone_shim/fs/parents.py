"""Directories that a layer has only as parents of its own entries.

Such a layer says nothing of their owner, mode and times, so those of the layer below should show. Overlayfs shows the
topmost directory's, which here is a bare one; so the writable layer gets a copy of what should show.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from errno import ELOOP, ENODATA, ENOTDIR, EOPNOTSUPP
from pathlib import Path

from forgeone_shim.fs.layers import Lower
from forgeone_shim.fs.owners import Owners

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"


def mend(layers: Sequence[Lower], upper: Path, owners: Owners | None = None) -> None:
    """Make in ``upper`` the directories that would show the wrong attributes; ``layers`` are topmost first.

    They belong there to the ids on the host that the layers' ids have by ``owners``.
    Raises OSError.
    """
    wanted = _with_ancestors(path for layer in layers for path in layer.implied)
    sources: dict[bytes, _Source] = {}
    alone: list[bytes] = []
    for parts in sorted(path.split(b"/") for path in wanted):
        if alone and parts[: len(alone)] == alone:
            # Below what a single layer has there is nothing to choose from.
            continue
        path = b"/".join(parts)
        sources[path] = _source(layers, path)
        alone = parts if sources[path].is_alone else []
    wrong = [path for path, source in sources.items() if source.described != source.topmost]
    with ExitStack() as stack:
        upper_fd = _open(stack, upper)
        chosen = [(path, sources[path].described) for path in sorted(_with_ancestors(wrong))]
        times = [(path, _copy(layers[i].tree, upper_fd, path, owners)) for path, i in chosen if i is not None]
        # Deepest first, and after all are made: making one changes the times of the one it is in.
        for path, both in reversed(times):
            with ExitStack() as walk:
                os.utime(_walk(walk, upper_fd, path), ns=both)


def _with_ancestors(paths: Iterable[bytes]) -> set[bytes]:
    return {b"/".join(parts[:end]) for parts in (p.split(b"/") for p in paths) for end in range(1, len(parts) + 1)}


@dataclass(frozen=True, slots=True)
class _Source:
    """Layers by index: the one that describes a directory as it should show, and the topmost that has it at all."""

    described: int | None
    topmost: int | None
    is_alone: bool = False


def _source(layers: Sequence[Lower], path: bytes) -> _Source:
    having: list[int] = []
    for index, layer in enumerate(layers):
        found, ends = _look(layer.tree, path)
        if found:
            having.append(index)
            if path not in layer.implied:
                return _Source(index, having[0])
        if ends:
            break
    topmost = having[0] if having else None
    return _Source(topmost, topmost, is_alone=len(having) <= 1)


def _look(tree: Path, path: bytes) -> tuple[bool, bool]:
    """Whether the directory is in the tree, and whether the tree hides any of that path below it."""
    hides = False
    with ExitStack() as stack:
        fd = _open(stack, tree)
        for name in path.split(b"/"):
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                return False, hides
            except OSError as error:
                if error.errno in (ENOTDIR, ELOOP):
                    return False, True
                raise
            stack.callback(os.close, fd)
            hides = hides or _is_opaque(fd)
    return True, hides


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (ENODATA, EOPNOTSUPP):
            return False
        raise


def _copy(tree: Path, upper: int, path: bytes, owners: Owners | None) -> tuple[int, int]:
    """Make the directory in ``upper``, whose parents are there, as it is in ``tree``; its times are for later."""
    with ExitStack() as stack:
        source = _walk(stack, _open(stack, tree), path)
        parent_path, _, name = path.rpartition(b"/")
        parent = _walk(stack, upper, parent_path) if parent_path else upper
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        target = _walk(stack, parent, name)
        status = os.fstat(source)
        owner = (status.st_uid, status.st_gid)
        os.fchown(target, *(owner if owners is None else owners.outside(*owner)))
        os.fchmod(target, status.st_mode & 0o7777)
        for attribute in attributes(source):
            os.setxattr(target, attribute, os.getxattr(source, attribute))
        return status.st_atime_ns, status.st_mtime_ns


def attributes(fd: int) -> Iterator[str]:
    """The extended attributes that are not overlayfs's own."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listxattr(fd)
    return (name for name in names if not name.startswith("trusted.overlay."))


def _open(stack: ExitStack, path: Path) -> int:
    fd = os.open(path, _DIRECTORY)
    stack.callback(os.close, fd)
    return fd


def _walk(stack: ExitStack, fd: int, path: bytes) -> int:
    for name in path.split(b"/"):
        fd = os.open(name, _DIRECTORY, dir_fd=fd)
        stack.callback(os.close, fd)
    return fd
