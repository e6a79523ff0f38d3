"""A unix socket that a successor takes over without a gap.

A server listens on ``PATH.<pid>`` and renames that over ``PATH`` once it serves. Clients of an earlier server stay
connected to it until it ends them; new ones reach the successor. Listening on ``PATH`` itself would let the earlier
server's library delete the successor's socket when it stops.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from typing import Final

from forgeone_shim.errors import InternalError, syscall_error

MODE: Final = 0o660
"""Whoever may write to the socket is root on this node: the owner and one group."""


def beside(path: Path, pid: int) -> Path:
    """Where the server of process ``pid`` listens before it takes ``path``."""
    return path.with_name(f"{path.name}.{pid}")


def take(listening: Path, path: Path, gid: int) -> None:
    """Give the socket its mode and group, then its final name, over whatever had it.

    :raises InternalError: nothing can listen there, or something else than a socket is in the way.
    """
    try:
        if not _free(path):
            raise InternalError(f"{path} is not a socket", fix="move it away, or give forgeoned another --socket")
        os.chown(listening, -1, gid)
        listening.chmod(MODE)
        listening.rename(path)
    except OSError as error:
        raise syscall_error("take over", path, error) from None
    for name in _abandoned(path):
        with contextlib.suppress(OSError):
            name.unlink()


def _abandoned(path: Path) -> Iterator[Path]:
    """Sockets beside ``path`` of servers that were killed before they took it."""
    for found in path.parent.glob(f"{glob.escape(path.name)}.*"):
        pid = found.name.removeprefix(f"{path.name}.")
        if pid.isascii() and pid.isdigit() and not Path("/proc", pid).exists() and _is_deserted(found):
            yield found


def _is_deserted(path: Path) -> bool:
    """Whether it is a socket that nobody listens on: its process may be one that this /proc does not show."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _free(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return True
