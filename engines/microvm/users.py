"""Users of the host's that nobody else is, one for each machine's monitor: a link by its number, to whose it is."""

from __future__ import annotations

import contextlib
import threading
import zlib
from pathlib import Path
from typing import Final

from forgeone_shim.errors import ResourceExhausted, syscall_error

# The last one of a range is for machines that are nobody's.
COUNT: Final = 65535
SPARE: Final = COUNT


class Users:
    """Thread-safe. ``pods`` has a directory for each pod that may have a user: others' are free."""

    def __init__(self, directory: Path, pods: Path) -> None:
        self._directory, self._pods = directory, pods
        self._lock = threading.Lock()

    def take(self, sandbox_id: str) -> int:
        """A number below :data:`COUNT` that no other pod has; again returns the same.

        :raises ResourceExhausted: all are taken.
        """
        first = zlib.crc32(sandbox_id.encode()) % COUNT
        try:
            with self._lock:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                for step in range(COUNT):
                    number = (first + step) % COUNT
                    if self._take(self._directory / str(number), sandbox_id):
                        return number
        except OSError as error:
            raise syscall_error("take a user in", self._directory, error) from error
        raise ResourceExhausted("every user that machines may have is taken")

    def _take(self, path: Path, sandbox_id: str) -> bool:
        try:
            path.symlink_to(sandbox_id)
        except FileExistsError:
            owner = str(path.readlink())
            if owner == sandbox_id:
                return True
            if (self._pods / owner).exists():
                return False
            # Of a daemon that was killed half way.
            path.unlink()
            path.symlink_to(sandbox_id)
        return True

    def give_back(self, sandbox_id: str) -> None:
        """What it took is anybody's again; nothing taken is no error."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if str(path.readlink()) == sandbox_id:
                    path.unlink()
