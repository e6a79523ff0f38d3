"""Directories that a layer only implies, where a layer below has a symlink.

A layer with ``bin/tool`` and no entry for ``bin`` says nothing of ``bin`` itself. On a layer that has
``bin -> usr/bin`` the tool belongs into ``usr/bin``, which is where it goes when layers are unpacked one over the
other. Each layer being a directory of its own, what overlayfs would show is the directory ``bin`` in place of the
symlink. So above such a layer comes one more, with the symlink again and the tool where it leads, as hard links to the
layer's own files.

A layer that hides what is below (opaque), or has an entry for the directory, means the directory and keeps it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from errno import ELOOP, ENAMETOOLONG, ENODATA, ENOENT, ENOTDIR, EOPNOTSUPP
from pathlib import Path

from forgeone_shim.fs.layers import Lower
from forgeone_shim.fs.parents import attributes
from forgeone_shim.kernel.mounts import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_OPAQUE = "trusted.overlay.opaque"
# As many as the kernel follows in one path.
_MAX_SYMLINKS = 40
_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)


def follow(layers: Sequence[Lower], home: Path) -> list[Lower]:
    """The layers, topmost first as they came, with those between that they need; these are made below ``home``.

    Raises OSError.
    """
    below: list[Lower] = []
    for number, layer in enumerate(reversed(layers)):
        moves = _moves(layer, _View(below)) if below else {}
        above = [_moved(layer, _View(below), moves, home / str(number))] if moves else []
        below = [*above, layer, *below]
    return below


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is to be seen at a path: a directory (by the layers that have it), a symlink, something else, or nothing."""

    directories: tuple[Path, ...] = ()
    symlink: Path | None = None
    other: bool = False


class _View:
    """Layers as one tree, topmost first; nothing in them changes."""

    def __init__(self, layers: Sequence[Lower]) -> None:
        self._known = {b"": _Shown(tuple(layer.tree for layer in layers))}

    def at(self, path: bytes) -> _Shown:
        """What shows there, symlinks not followed."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = self._look(path)
        return found

    def _look(self, path: bytes) -> _Shown:
        directories: list[Path] = []
        for tree in self.at(path.rpartition(b"/")[0]).directories:
            place = tree / os.fsdecode(path)
            try:
                mode = place.lstat().st_mode
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                continue
            if stat.S_ISDIR(mode):
                directories.append(tree)
                if _is_opaque(place):
                    break
            elif directories:
                break
            else:
                return _Shown(symlink=place) if stat.S_ISLNK(mode) else _Shown(other=True)
        return _Shown(tuple(directories))

    def resolved(self, path: bytes) -> bytes | None:
        """Where the path leads to a process whose root this is; ``None`` if to no directory, even one to be made."""
        ahead = path.split(b"/")[::-1]
        done: list[bytes] = []
        symlinks = 0
        while ahead:
            name = ahead.pop()
            if name == b"..":
                del done[-1:]
            elif name not in (b"", b"."):
                shown = self.at(b"/".join([*done, name]))
                if shown.other or symlinks > _MAX_SYMLINKS:
                    return None
                if shown.symlink is None:
                    done.append(name)
                    continue
                symlinks += 1
                target = os.fsencode(shown.symlink.readlink())
                if target.startswith(b"/"):
                    done.clear()
                ahead += target.split(b"/")[::-1]
        return b"/".join(done)


def _moves(layer: Lower, below: _View) -> dict[bytes, bytes]:
    """Directories of the layer that stand in place of a symlink, and where that leads."""
    moves: dict[bytes, bytes] = {}
    for path in sorted(layer.implied):
        if below.at(path).symlink is None or any(part in moves for part in _upwards(path)):
            continue
        target = below.resolved(path)
        if target is not None and _is_plain(layer.tree, path):
            moves[path] = target
    return moves


def _upwards(path: bytes) -> list[bytes]:
    """The path and its parents, but for the root."""
    found = []
    while path:
        found.append(path)
        path = path.rpartition(b"/")[0]
    return found


def _is_plain(tree: Path, path: bytes) -> bool:
    """Whether it is a directory that hides nothing below it, nor does a parent."""
    places = [tree / os.fsdecode(part) for part in _upwards(path)]
    try:
        return all(stat.S_ISDIR(place.lstat().st_mode) and not _is_opaque(place) for place in places)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise


def _is_opaque(place: Path) -> bool:
    try:
        return os.getxattr(place, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (ENODATA, EOPNOTSUPP):
            return False
        raise


def _moved(layer: Lower, below: _View, moves: dict[bytes, bytes], home: Path) -> Lower:
    """Make the layer that comes above ``layer``."""
    home.mkdir(parents=True)
    with ExitStack() as stack:
        target = _Target(stack, home)
        source = os.open(layer.tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, source)
        for path in moves:
            symlink = below.at(path).symlink
            parent_path, _, name = path.rpartition(b"/")
            with target.directory(parent_path) as parent:
                os.link(os.fsencode(str(symlink)), name, dst_dir_fd=parent.fd, follow_symlinks=False)
        ahead = list(moves.items())
        explicit: list[tuple[bytes, bytes]] = []
        while ahead:
            path, to = ahead.pop()
            with _Opened(source, path) as found, target.directory(to) as made:
                for name, is_directory in found.entries():
                    inner, inner_to = path + b"/" + name, to + b"/" + name if to else name
                    if not is_directory:
                        with suppress(FileExistsError):
                            os.link(name, name, src_dir_fd=found.fd, dst_dir_fd=made.fd, follow_symlinks=False)
                    elif inner in layer.implied:
                        ahead.append((inner, below.resolved(inner_to) or inner_to))
                    else:
                        explicit.append((inner, inner_to))
                        ahead.append((inner, inner_to))
        # Last, because making anything in a directory changes its times.
        for path, to in reversed(explicit):
            target.describe(_Opened(source, path), to)
        return Lower(home, frozenset(target.implied))


class _Opened:
    """A directory below another, reached through no symlink."""

    def __init__(self, root: int, path: bytes) -> None:
        self.fd = openat2(root, path or b".", os.O_RDONLY | os.O_DIRECTORY, _INSIDE)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def entries(self) -> list[tuple[bytes, bool]]:
        """Names, and whether each is a directory."""
        with os.scandir(self.fd) as found:
            return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]


class _Target:
    """The layer being made; ``implied`` are the directories in it that it does not describe."""

    def __init__(self, stack: ExitStack, home: Path) -> None:
        self._root = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, self._root)
        self.implied: set[bytes] = set()

    def directory(self, path: bytes) -> _Opened:
        """The directory, made with its parents where it is absent."""
        for part in reversed(_upwards(path)):
            parent_path, _, name = part.rpartition(b"/")
            with _Opened(self._root, parent_path) as parent, suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent.fd)
                self.implied.add(part)
        return _Opened(self._root, path)

    def describe(self, source: _Opened, path: bytes) -> None:
        """Give the directory the attributes of ``source``, which is closed."""
        with source, self.directory(path) as made:
            status = os.fstat(source.fd)
            os.fchown(made.fd, status.st_uid, status.st_gid)
            os.fchmod(made.fd, status.st_mode & 0o7777)
            for attribute in attributes(source.fd):
                os.setxattr(made.fd, attribute, os.getxattr(source.fd, attribute))
            with suppress(OSError):
                os.setxattr(made.fd, _OPAQUE, os.getxattr(source.fd, _OPAQUE))
            os.utime(made.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.implied.discard(path)
