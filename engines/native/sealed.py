"""A program held in a sealed memory file.

crun executes itself a second time from a sealed copy, made anew at every call, so that no container can write to the
program that the host runs (CVE-2019-5736). Started from such a copy it finds that done, which saves the copy and half
of its start. The path names this process's descriptor, so that conmon can execute it too.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping
from pathlib import Path

# F_SEAL_SEAL|SHRINK|GROW|WRITE: what crun looks for.
_SEALS = 0xF
_MFD_EXEC = 0x10


class SealedProgram:
    """Keeps a copy of the program at ``path`` and renews it when the file changes. Safe to call from many threads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._fd = -1
        self._old: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._path)

    def path(self) -> str:
        """What to execute: the copy, or the file itself where the host does not allow executing memory files."""
        try:
            found = Path(self._path).stat()
            mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            with self._lock:
                if mark != self._seen:
                    self._renew(mark)
                return f"/proc/{os.getpid()}/fd/{self._fd}" if self._fd >= 0 else self._path
        except OSError:
            return self._path

    def _renew(self, mark: tuple[int, ...]) -> None:
        # The copy before may be about to be executed by a thread that was just told its path; the one before that
        # is long out of use.
        for fd in self._old:
            os.close(fd)
        self._old = [self._fd] if self._fd >= 0 else []
        self._fd = -1
        self._seen = mark
        self._fd = _copy(self._path)


def _copy(path: str) -> int:
    """A sealed, executable copy; -1 where there cannot be one."""
    try:
        try:
            fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
        except OSError:
            # Before Linux 6.3 there is no such flag, and memory files are executable.
            fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return -1
    try:
        content = Path(path).read_bytes()
        if not content.startswith(b"\x7fELF"):
            # The interpreter of a script would be handed a path, not the copy.
            os.close(fd)
            return -1
        written = 0
        while written < len(content):
            written += os.write(fd, content[written:])
        os.fchmod(fd, 0o755)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        return -1
    return fd


def environment() -> Mapping[str, str]:
    """What programs of this engine get: nothing of the daemon's but where to find other programs."""
    return {"PATH": os.environ.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")}
