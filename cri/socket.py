"""A unix socket that a successor takes over without a gap.

A server listens on ``PATH.<pid>`` and renames that over ``PATH`` once it serves. Clients of an earlier server stay
connected to it until it ends them; new ones reach the successor. Listening on ``PATH`` itself would let the earlier
server's library delete the successor's socket when it stops.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
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


def _free(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return True
