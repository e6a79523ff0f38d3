"""Waiting for what the kernel does on its own after a request: told by it, not by asking again and again."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from forgeone_shim.kernel.netlink import NETLINK_ROUTE, split_messages

LINKS: Final = 0x1
IPV6_ADDRESSES: Final = 0x100
_RECEIVE_BYTES: Final = 1 << 16
# The interface's index is at the same place in the messages of links and of addresses.
_INDEX: Final = struct.Struct("=4xi")


class Watch:
    """Events of the thread's network namespace from now on, of interface ``index`` alone."""

    def __init__(self, groups: int, index: int) -> None:
        self._index = index
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Whether ``done()``, asked now and after every event, came true in time."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not done():
            while True:
                left = end - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    return done()
                if self._concerns():
                    break
        return True

    def _concerns(self) -> bool:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError:
            # Events were lost: any of them may have been of this interface.
            return True
        with suppress(struct.error):
            return any(_INDEX.unpack_from(body)[0] == self._index for _, _, _, body in split_messages(data))
        return True
