"""Starts a file server: in a child of the keeper, which is confined before it serves."""

from __future__ import annotations

import os
import signal
import socket
from typing import Final, NoReturn

from engines.microvm.shares import orders, server
from engines.microvm.shares.client import FileServer
from engines.microvm.shares.confinement import confine
from engines.microvm.shares.orders import Done, Failed
from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.shim import titles, wire

TITLE: Final = "forgeone-files"
# Of the answer that nothing was asked for.
READY_TICKET: Final = 0
_STANDARD: Final = (0, 1, 2)


def start(port: socket.socket, sandbox_id: str, *, uid: int, gid: int) -> FileServer:
    """Fork a file server of the user ``uid``, nobody else's. Called in a process of one thread, which is root.

    ``port`` is the connected socket of the share port; the caller's own is closed afterwards by the caller. The server
    says that it serves (Done with :data:`READY_TICKET`), or why it does not or does no more (Failed with it); orders
    may be given before. It ends with any of its two connections.

    :raises OSError: no process or socket can be had.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setblocking(False)
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            _child(port, theirs, sandbox_id, (uid, gid))
    except BaseException:
        ours.close()
        raise
    finally:
        if os.getpid() == parent:
            theirs.close()
    return FileServer(pid, ours)


def _child(port: socket.socket, control: socket.socket, sandbox_id: str, who: tuple[int, int]) -> NoReturn:
    code = 1
    try:
        _reset_signals()
        close_all_but({*_STANDARD, port.fileno(), control.fileno()})
        titles.rename(titles.area(), (TITLE, sandbox_id))
        code = _serve(port, control, who)
    finally:
        # Nothing of the parent's is to be run or flushed here.
        os._exit(code)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _serve(port: socket.socket, control: socket.socket, who: tuple[int, int]) -> int:
    doing = "be confined"
    try:
        root, descriptors = confine(*who)
        doing = "serve"
        wire.send(control, orders.encode(Done(READY_TICKET)))
        server.serve(port, control, root, descriptors)
    except Exception as error:
        reason = f"the file server cannot {doing}: {type(error).__name__}: {error}"
        wire.send(control, orders.encode(Failed(READY_TICKET, reason)))
        return 1
    return 0
