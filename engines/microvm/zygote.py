"""The process that keepers are forked from, with what they need imported. It has no machine itself."""

from __future__ import annotations

import contextlib
import functools
import gc

from engines.microvm.keeper import confinement, monitors, orders, process, saving
from engines.microvm.keeper.orders import Driver, Monitor, Save
from engines.microvm.shares import confinement as files_confinement
from engines.microvm.shares import launch as shares
from forgeone_shim.errors import ForgeError, Kind
from forgeone_shim.shim import forks
from forgeone_shim.shim.forks import Fork
from forgeone_shim.shim.supervision import Failed


def main() -> None:
    """Serve on descriptor :data:`forks.LISTENER` until nobody needs it any more."""
    # For all keepers and file servers; where they cannot be had, each of them says so.
    with contextlib.suppress(ForgeError):
        confinement.program()
        files_confinement.program()
    gc.collect()
    gc.freeze()
    # What is left to collect would be pages that are no longer shared; nothing here makes cycles.
    gc.disable()
    forks.serve(handle)


def handle(data: bytearray, fds: list[int]) -> Fork:
    """What becomes of a request of :mod:`engines.microvm.keeper.orders`.

    :raises ProtocolError: it is none.
    """
    asked = orders.decode_request(data)
    make = functools.partial(monitors.make, asked.monitor)
    if isinstance(asked, Save):
        return Fork(child=functools.partial(saving.save, asked, list(fds), make), failed=_no_child)
    files = functools.partial(shares.start, sandbox_id=asked.sandbox_id, uid=asked.who.uid, gid=asked.who.gid)
    keep = functools.partial(
        process.keep, asked, list(fds), process.Means(make, files, functools.partial(_confine, asked.monitor))
    )
    return Fork(child=keep, failed=_no_child, lasts=True)


def _confine(monitor: Monitor) -> None:
    # The other monitors' keepers have to put disks into their file systems.
    if monitor.driver is Driver.QEMU:
        confinement.confine()


def _no_child(error: OSError) -> bytes:
    return orders.encode(Failed(step="fork", error=Kind.EXHAUSTED, message=error.strerror or str(error)))
