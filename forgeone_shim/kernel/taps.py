"""Taps: network interfaces whose other side is a descriptor. Layout: linux/if_tun.h."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

NAME: Final = "forgeone-vm0"
"""Of the one in a pod's network namespace that its machine is behind."""

_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_IFREQ: Final = struct.Struct("16sH22x")


def make(name: str) -> int:
    """A new tap in the calling thread's network namespace, down; it goes when its descriptor, and each copy, is closed.

    Frames have a virtio-net header in front. Raises OSError: EBUSY where there is one of that name.
    """
    fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd
