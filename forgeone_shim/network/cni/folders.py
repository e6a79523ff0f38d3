"""Folders of network configurations, each read once and again when something in it, or on the way to it, changes."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from forgeone_shim.kernel.watches import Watches
from forgeone_shim.network.cni.config import Folder, folders_in, read_folder


@dataclass(slots=True)
class _Watched:
    path: str
    folder: Folder
    watches: Watches | None = None
    blind: str = ""


class Folders:
    """Thread-safe. One thread, begun with the first folder, waits for changes of all of them.

    A folder that cannot be watched, as the kernel has no more watches to give, is read at each look instead.

    :param at_most: how many configurations of a folder count (0: all).
    :param changed: called, in any thread, with the path of a folder that holds something else by now.
    """

    def __init__(self, at_most: int, changed: Callable[[str], None] = lambda _: None) -> None:
        self._at_most, self._changed = at_most, changed
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._closed = False
        self._log = structlog.get_logger("cni")

    def look(self, path: str) -> Folder:
        """What the folder holds now: a file that was there before the call counts."""
        with self._lock:
            if self._closed:
                # A call that is still under way.
                return read_folder(path, self._at_most)
            one = self._watched.get(path)
            if one is None:
                one = self._watched[path] = _Watched(path, Folder())
                self._read(one)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="cni-folders", daemon=True)
                    self._thread.start()
                return one.folder
            told = self._refresh(one)
        if told:
            self._changed(path)
        return one.folder

    def paths(self) -> tuple[str, ...]:
        """The folders that have been looked at."""
        with self._lock:
            return tuple(self._watched)

    def reset(self, at_most: int, keep: Collection[str]) -> None:
        """Another number of configurations counts from now on; folders that are not to be kept are forgotten."""
        with self._lock:
            self._at_most = at_most
            for path in set(self._watched).difference(keep):
                self._forget(self._watched.pop(path))
            for one in self._watched.values():
                self._read(one)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._closed = True
            for one in self._watched.values():
                self._forget(one)
            self._watched.clear()
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closed:
            self._epoll.poll()
            try:
                with self._lock:
                    told = [one.path for one in self._watched.values() if self._refresh(one)]
                for path in told:
                    self._changed(path)
            except Exception:
                # Whoever looks at the folder reads it again, and is told.
                self._log.exception("a change of network configurations could not be followed")

    def _refresh(self, one: _Watched) -> bool:
        """Read it again if something happened; says whether it holds something else."""
        if one.watches is not None and not one.watches.changed():
            return False
        before = one.folder
        self._read(one)
        return one.folder != before

    def _read(self, one: _Watched) -> None:
        """Watch first, then read, so that nothing is missed in between."""
        before = one.folder
        try:
            one.watches = self._watch(one)
        except OSError as error:
            self._tell_blind(one, error.strerror or str(error))
        else:
            one.blind = ""
            self._epoll.register(one.watches.fileno(), select.EPOLLIN)
        one.folder = read_folder(one.path, self._at_most)
        if one.folder != before:
            self._tell(one)

    def _watch(self, one: _Watched) -> Watches:
        # Since 1.1 a folder of a network's name may hold more plugins for it. All are watched: a list that cannot be
        # used for the sake of a plugin there has told no name.
        self._forget(one)
        within = folders_in(one.path)
        while True:
            watches = Watches(one.path, within)
            again = folders_in(one.path)
            if again <= within:
                return watches
            watches.close()
            within = again

    def _tell_blind(self, one: _Watched, why: str) -> None:
        if why != one.blind:
            self._log.warning(
                "network configurations cannot be watched, each pod reads them", folder=one.path, error=why
            )
        one.blind = why

    def _tell(self, one: _Watched) -> None:
        if one.folder.problem:
            self._log.error("network configuration cannot be used", folder=one.path, error=one.folder.problem)
        else:
            names = [network.name for network in one.folder.networks]
            self._log.info("network configuration read", folder=one.path, networks=names)

    @staticmethod
    def _forget(one: _Watched) -> None:
        # Closed, it leaves the epoll set as well.
        if one.watches is not None:
            one.watches.close()
            one.watches = None
