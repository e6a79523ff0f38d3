"""The files in which ``host-local`` keeps who has which address, shared with the program of that name.

``DATADIR/NETWORK/ADDRESS`` says who has it (container id, CR LF, interface), ``last_reserved_ip.N`` where range set N
goes on, and ``lock`` is held (flock) meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.network.cni.wellknown import flock
from forgeone_shim.network.cni.wellknown.conf import IpAddress

LINE_BREAK: Final = "\r\n"
_LAST: Final = "last_reserved_ip."
_LOCK: Final = "lock"


class Leases:
    """The leases of one network while their lock is held. Raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Nobody else changes them meanwhile.
        self._read: dict[str, str] | None = None

    def of(self, container_id: str, interface: str) -> list[str]:
        """The files that say a container's interface has something."""
        exact, old = _owner(container_id, interface), container_id.strip()
        return [name for name, owner in self._owners().items() if owner in (exact, old)]

    def reserve(self, wanted: IpAddress, container_id: str, interface: str, place: int) -> bool:
        """Take an address for range set ``place``; false when someone has it."""
        path = self._directory / str(wanted)
        try:
            fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            found = path.lstat()
            if found.st_size or not stat.S_ISREG(found.st_mode):
                return False
            # Whoever made it, with the lock that is held here now, died before it was written whose it is.
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with open(fd, "wb", buffering=0) as file:
                file.write(_owner(container_id, interface).encode())
            (self._directory / f"{_LAST}{place}").write_bytes(str(wanted).encode())
        except OSError:
            # The caller does not learn of the address, so nobody would ever give it back.
            with suppress(OSError):
                path.unlink()
            raise
        if self._read is not None:
            self._read[path.name] = _owner(container_id, interface)
        return True

    def last(self, place: int) -> IpAddress | None:
        """The address reserved last for range set ``place``."""
        try:
            return ip_address((self._directory / f"{_LAST}{place}").read_text())
        except (OSError, ValueError):
            return None

    def release(self, container_id: str, interface: str) -> None:
        """Give back all a container's interface has; nothing is no error."""
        exact, old = _owner(container_id, interface), container_id.strip()
        owners = self._owners().items()
        found = [name for name, owner in owners if owner == exact] or [name for name, owner in owners if owner == old]
        self._remove(found)

    def keep(self, valid: Collection[tuple[str, str]]) -> None:
        """Give back all that none of these containers' interfaces has."""
        keep = {_owner(*attachment) for attachment in valid} | {container_id for container_id, _ in valid}
        self._remove([name for name, owner in self._owners().items() if owner not in keep and _is_address(name)])

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                (self._directory / name).unlink()
            if self._read is not None:
                self._read.pop(name, None)

    def _owners(self) -> dict[str, str]:
        if self._read is not None:
            return self._read
        found: dict[str, str] = {}
        base = f"{self._directory}/"
        for name in os.listdir(self._directory):  # noqa: PTH208
            if name == _LOCK or name.startswith(_LAST):
                continue
            # A file that is gone or unreadable is nobody's, as it is to the program.
            with suppress(OSError):
                fd = os.open(base + name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    found[name] = os.read(fd, 4096).decode(errors="replace").strip()
                finally:
                    os.close(fd)
        self._read = found
        return found


def _owner(container_id: str, interface: str) -> str:
    return container_id.strip() + LINE_BREAK + interface


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(name))
    return False


@contextmanager
def locked(data_dir: str, network: str, deadline: Deadline) -> Iterator[Leases]:
    """The leases of a network, made if there are none, for as long as the block runs.

    :raises DeadlineExceeded: another process holds the lock.
    """
    directory = Path(data_dir, network)
    _make(directory)
    with flock.locked(directory / _LOCK, os.O_CREAT | os.O_RDONLY, 0o750, deadline):
        yield Leases(directory)


def _make(directory: Path) -> None:
    with suppress(FileExistsError):
        try:
            directory.mkdir(0o755)
        except FileNotFoundError:
            _make(directory.parent)
            directory.mkdir(0o755)
