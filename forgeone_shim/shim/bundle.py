"""What a supervisor keeps in its container's bundle, by a descriptor of the directory: paths may be of any length."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from forgeone_shim.shim import supervision

_BACKLOG: Final = 16
_OPEN: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Bundle:
    """Raises OSError, as all it does. What it opens is close-on-exec."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def put(self, name: str, content: bytes) -> None:
        """A file that is there whole or not at all."""
        self._draft(content)
        os.rename(supervision.DRAFT, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def put_outside(self, path: str, content: bytes) -> None:
        """The same at a path of the same file system."""
        self._draft(content)
        os.rename(supervision.DRAFT, path, src_dir_fd=self._fd)

    def _draft(self, content: bytes) -> None:
        fd = os.open(supervision.DRAFT, _OPEN, 0o600, dir_fd=self._fd)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)

    def fifo(self, name: str, flags: int = 0) -> int:
        """A new fifo, open at both ends: it does not end for a reader when those who write to it go."""
        self.remove(name)
        os.mkfifo(name, 0o600, dir_fd=self._fd)
        return os.open(name, os.O_RDWR | os.O_CLOEXEC | flags, dir_fd=self._fd)

    def listen(self, name: str) -> socket.socket:
        """A new socket for packets."""
        self.remove(name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # An address takes 107 bytes.
        listener.bind(f"/proc/self/fd/{self._fd}/{name}")
        os.chmod(name, 0o600, dir_fd=self._fd)
        listener.listen(_BACKLOG)
        return listener

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def remove(self, *names: str) -> None:
        """What is not there is no error."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
