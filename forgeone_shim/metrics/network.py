"""What a pod's interfaces have carried, read in its network namespace."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import taps
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.metrics.usage import text

# Nobody else's: what a pod says to itself, and what its machine says to it.
_INNER = ("lo", taps.NAME)


@dataclass(frozen=True, slots=True)
class Interface:
    """Counters of one interface since it was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def interfaces(netns: str, pids: Iterable[int]) -> tuple[Interface, ...]:
    """The interfaces, but for loopback, of the namespace pinned at ``netns``; none where it is gone.

    :param pids: processes that should be in it: looking through one of them costs a file, entering costs a thread.
    """
    try:
        wanted = os.stat(netns)  # noqa: PTH116
    except OSError:
        return ()
    for pid in pids:
        content = text(f"/proc/{pid}/net/dev")
        # Asked afterwards: the process that was read is then known to be the right one.
        if content and _is_in(pid, wanted):
            return parse(content)
    try:
        return parse(run_in(netns, lambda: text("/proc/thread-self/net/dev")))
    except ForgeError:
        return ()


def _is_in(pid: int, wanted: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")  # noqa: PTH116
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def parse(content: str) -> tuple[Interface, ...]:
    """The lines of ``/proc/net/dev`` (proc_net(5)) without loopback's and a machine's."""
    found = []
    for line in content.splitlines()[2:]:
        name, _, counters = line.rpartition(":")
        numbers = [int(word) for word in counters.split()]
        if name.strip() not in _INNER and len(numbers) >= 12:
            found.append(Interface(name.strip(), *numbers[0:4], *numbers[8:12]))
    return tuple(found)
