"""What a guest, or its keeper, has to say to the node's operator: a small file in the sandbox's directory."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from engines.microvm.keeper.agent import clean
from forgeone_shim.shim.crilog import Clock

_SIZE_MAX: Final = 64 * 1024
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Notes:
    """Lines of the file ``path``; beyond 64 KiB nothing more is kept. Fails on nothing."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        self._clock = Clock()

    def add(self, message: str) -> None:
        """One line."""
        line = self._clock.stamp(time.time_ns()) + b" " + clean(message).encode(errors="replace") + b"\n"
        if self._size + len(line) > _SIZE_MAX:
            return
        self._size += len(line)
        with contextlib.suppress(OSError):
            fd = os.open(self._path, _FLAGS, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
