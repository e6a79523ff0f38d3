"""Marking layers as safely on disk, in the background."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(path: Path) -> None:
    """``syncfs(2)``: all of the file system of ``path`` reaches the disk, or OSError says that some could not."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno), str(path))
    finally:
        os.close(fd)


class DelayedSync:
    """Creates marker files once all that was written before them is on disk.

    That happens ``delay`` seconds after the last marker was added and while nobody holds it off: by then the kernel has
    written most of it on its own, and whoever starts containers right after a pull does not wait behind it.
    """

    def __init__(self, root: Path, delay: float) -> None:
        self._root = root
        self._delay = delay
        self._changed = threading.Condition()
        self._markers: list[Path] = []
        self._holders = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """No sync starts within the block: layers that belong together are synced together."""
        with self._changed:
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._changed.notify_all()

    def add(self, marker: Path) -> None:
        """Create ``marker`` when what has been written until now is on disk."""
        with self._changed:
            if self._closed:
                return
            self._markers.append(marker)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="layer-sync", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop; markers still waiting are not created."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                # Each change starts the delay anew.
                while not self._closed and (self._changed.wait(self._delay) or self._holders):
                    pass
                if self._closed or not self._markers:
                    self._thread = None
                    return
                markers, self._markers = self._markers, []
            self._mark(markers)

    def _mark(self, markers: list[Path]) -> None:
        """On failure the markers stay away, and the layers are fetched again after a reboot."""
        try:
            syncfs(self._root)
            for marker in markers:
                if marker.parent.is_dir():
                    marker.touch()
        except OSError:
            return
