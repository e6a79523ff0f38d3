"""A supervisor's whole work, done for nothing in the process that supervisors are forked from.

What Python makes of code when it runs (caches, tables of names, specialized instructions: PEP 659) is then there before
the fork and shared, where each supervisor made its own: 75 pages of memory, and a millisecond.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import socket
from pathlib import Path
from typing import Final

from forgeone_shim.kernel.descriptors import open_descriptors
from forgeone_shim.shim import supervision, titles, wire
from forgeone_shim.shim.bundle import Bundle
from forgeone_shim.shim.channel import Channel
from forgeone_shim.shim.supervision import Supervision
from forgeone_shim.shim.supervisor import Supervisor

# As often as it takes until code is specialized: eight calls, and the next to do it.
_TIMES: Final = 10
_NAME: Final = "rehearsal"
_SECONDS: Final = 3


def rehearse(directory: str) -> None:
    """Supervise a process that ends at once, several times, with a bundle below ``directory`` that is removed again.

    For a process of one thread, before it serves anybody. What goes wrong is nobody's loss but of what was to be won.
    """
    bundle = Path(directory, _NAME)
    before = open_descriptors()
    with contextlib.suppress(OSError):
        # Another that was killed in the middle of it may have left it.
        bundle.mkdir(0o700, exist_ok=True)
        # A server of another version may do the same at this moment; its own start is as well as none. Kept open: it is
        # closed with the others.
        fcntl.flock(os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_EX | fcntl.LOCK_NB)
        for _ in range(_TIMES):
            _supervise(str(bundle))
            # Once is enough of what takes that long, or does not work here.
            if (bundle / _NAME).read_bytes() != b"0":
                break
        for path in bundle.iterdir():
            path.unlink()
        bundle.rmdir()
    # A supervisor leaves them to its end. Sockets close theirs by themselves, before a number is another's.
    gc.collect()
    for fd in open_descriptors() - before:
        os.close(fd)


class _Rehearsed(Supervisor):
    def _begin(self) -> None:
        """This process stays what it is."""
        self._area = titles.area()
        self._score = b"0"


def _supervise(bundle: str) -> None:
    client, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    plan = Supervision(container_id=_NAME, bundle=bundle, exits=bundle, log_path=f"{bundle}/log", title=_NAME)
    ours = client.detach()

    def launch(channel: Channel) -> int:
        # Nobody is served before it has ended.
        signal.alarm(_SECONDS)
        channel.ready()
        with socket.socket(fileno=ours) as asker:
            wire.receive(asker)
        start = os.open(f"{bundle}/{supervision.START}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(start, b"\0")
        channel.await_start()
        os.write(1, b"a line\n")
        return 0

    _Rehearsed(plan, Bundle(bundle), connection).run(lambda: None, launch, (ours,))
