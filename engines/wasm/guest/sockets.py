"""Sockets for components, which wasmtime 48 to 50 cannot be told to give.

Since 48 TCP and UDP are denied unless a host allows them, and the C interface has no function for it: the three truths
``allow_ip_name_lookup``, ``allow_udp`` and ``allow_tcp`` lie side by side in its ``wasi_config_t``, and only the first
can be set. Where it lies is found by setting it; the two after it are then set the same way. What a socket may reach is
for the network namespace to say.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Final

from wasmtime import WasiConfig, _bindings

from forgeone_shim.errors import FailedPrecondition

_FALSE_FALSE: Final = b"\0\0"
_TRUE_TRUE: Final = b"\1\1"


def allow(config: WasiConfig) -> None:
    """Let the guest make TCP and UDP sockets and look up names, before ``config`` goes to a store.

    :raises FailedPrecondition: the configuration is not laid out as is known here; nothing was allowed.
    """
    address = ctypes.cast(config.ptr(), ctypes.c_void_p).value
    at = (address or 0) + offset()
    _bindings.wasi_config_allow_ip_name_lookup(config.ptr(), True)
    ctypes.memmove(at + 1, _TRUE_TRUE, len(_TRUE_TRUE))
    _bindings.wasi_config_inherit_network(config.ptr())


@functools.cache
def offset() -> int:
    """Of ``allow_ip_name_lookup``, as a configuration of no use to anybody shows."""
    config = WasiConfig()
    address = ctypes.cast(config.ptr(), ctypes.c_void_p).value
    libc = ctypes.CDLL(None)
    libc.malloc_usable_size.restype = ctypes.c_size_t
    libc.malloc_usable_size.argtypes = [ctypes.c_void_p]
    size = libc.malloc_usable_size(address)
    before = ctypes.string_at(address or 0, size)
    _bindings.wasi_config_allow_ip_name_lookup(config.ptr(), True)
    after = ctypes.string_at(address or 0, size)
    changed = [index for index in range(size) if before[index] != after[index]]
    if len(changed) == 1 and after[changed[0] + 1 : changed[0] + 3] == _FALSE_FALSE:
        return changed[0]
    raise FailedPrecondition("this version of wasmtime gives components no sockets that are known here")
