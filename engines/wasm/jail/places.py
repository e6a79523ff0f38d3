"""Where in a jail something is mounted: found, or made, as a process rooted there would, whatever symlinks say."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.mounts import open_in_root

_LINKS_MAX: Final = 40


def place(root: int, path: str, owner: tuple[int, int], *, directory: bool) -> int:
    """An ``O_PATH`` descriptor of ``path`` below ``root``; what is missing of it is made and belongs to ``owner``.

    The last part is made as a directory or as an empty file. Raises OSError, InvalidInput for a path of too many links.
    """
    try:
        return open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        return _made(root, path, owner, directory=directory)


def _made(root: int, path: str, owner: tuple[int, int], *, directory: bool) -> int:
    links = 0
    done, todo = ".", _parts(path)
    while todo:
        part = todo.pop(0)
        here = f"{done}/{part}"
        try:
            os.close(open_in_root(root, here, os.O_PATH))
        except FileNotFoundError:
            link = _make(root, done, part, owner, directory=directory or bool(todo))
            if link:
                # A symlink that leads nowhere: what it names is made, as it is what a process would see here.
                links += 1
                if links > _LINKS_MAX:
                    raise InvalidInput("mounts.container_path", f"{path!r} leads through too many symlinks") from None
                done, todo = "." if link.startswith("/") else done, [*_parts(link), *todo]
                continue
        done = here
    return open_in_root(root, done, os.O_PATH)


def _make(root: int, parent: str, name: str, owner: tuple[int, int], *, directory: bool) -> str:
    """Make one entry; where there is a symlink instead, what it says."""
    at = open_in_root(root, parent, os.O_PATH | os.O_DIRECTORY)
    try:
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=at)
            else:
                os.mknod(name, 0o644 | stat.S_IFREG, dir_fd=at)
        except FileExistsError:
            return _link(name, at)
        if owner != (0, 0):
            os.chown(name, *owner, dir_fd=at, follow_symlinks=False)
        return ""
    finally:
        os.close(at)


def _link(name: str, at: int) -> str:
    try:
        return os.readlink(name, dir_fd=at)
    except OSError as error:
        # Made by somebody else in between, which is as good.
        if error.errno == errno.EINVAL:
            return ""
        raise


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]
