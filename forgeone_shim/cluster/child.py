"""The program that watches the cluster for forgeoned: a process of its own, as the Kubernetes client is large.

It reads what the kubeconfig names and gives up the rest (:mod:`.confinement`). What it finds it tells over the socket
that it was started with, and with that it ends.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from forgeone_shim.cluster import wire
from forgeone_shim.cluster.confinement import confine
from forgeone_shim.cluster.verdicts import Speaker
from forgeone_shim.cluster.watch import Watch

LINK: Final = 3
"""The descriptor of its end of the socket."""

DEPTH: Final = 12_000
"""k8s.io/apimachinery reads up to 10,000 levels; at this one C's stack of 8 MiB is far from its end."""

_CHUNK: Final = 65536


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What it is started with: the kubeconfig's path, the node's name, and a directory for files of its own."""

    kubeconfig: str
    node: str
    scratch: str


class Link:
    """The socket to forgeoned. Thread-safe."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._lock = end, threading.Lock()

    def tell(self, message: wire.Told) -> None:
        """Returns once it is sent; where nobody listens any more there is nothing left to do."""
        try:
            with self._lock:
                self._end.sendall(wire.line(message))
        except OSError:
            _end()

    def listen(self, heard: Callable[[wire.Verdict], None]) -> NoReturn:
        """Until the other side is gone."""
        lines = wire.Lines()
        while True:
            try:
                data = self._end.recv(_CHUNK)
            except OSError:
                data = b""
            if not data:
                _end()
            for line in lines.feed(data):
                heard(wire.verdict(line))


def main() -> NoReturn:
    """The program; its only argument is an :class:`Order`."""
    # An API server takes JSON that is nested ten times deeper than Python does; the watch says which object that is.
    sys.setrecursionlimit(DEPTH)
    order = msgspec.json.decode(sys.argv[1], type=Order)
    end = socket.socket(fileno=LINK)
    end.set_inheritable(False)
    scratch = Path(order.scratch)
    confine(scratch)
    # Only now: it is large, and nobody of this project has written it.
    from forgeone_shim.cluster.api import Server

    link = Link(end)
    server = Server(Path(order.kubeconfig), scratch)
    # Each its own: a connection that waits for one must not hold up the other.
    speaker = Speaker(Server(Path(order.kubeconfig), scratch), order.node, lambda why: link.tell(wire.Unsaid(why)))
    _begin(lambda: link.listen(speaker.say), "listen")
    _begin(speaker.run, "speak")
    try:
        # The thread that listens ends the process, so nothing need wake this one.
        Watch(server, link.tell, speaker.seen, time.sleep).run()
    finally:
        sys.stderr.flush()
    raise AssertionError("the watch ended")


def _begin(work: Callable[[], None], name: str) -> None:
    def run() -> None:
        try:
            work()
        except BaseException:
            # A process that is half alive would never be replaced.
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    threading.Thread(target=run, name=name, daemon=True).start()


def _end() -> NoReturn:
    os._exit(0)


if __name__ == "__main__":
    main()
