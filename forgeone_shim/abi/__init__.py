"""What a WebAssembly guest may ask of ForgeOne besides WASI: the interface's version, names and layouts.

Two faces of one thing. A core module imports functions by the names below, declared in ``include/forgeone.h``; a
component imports the interfaces of ``wit/``. ``examples/`` has a guest in C, one in Rust and one in Python.

The interface only grows. A new function raises the minor version; a structure's new fields come at its end, and a guest
says how much of it it knows. What is taken away or changes its meaning raises the major version, under new names beside
the old ones, so that a guest that was built once runs as long as the names it imports are offered. What a guest imports
and this host does not have is told when its container is created.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Final

from forgeone_shim.errors import InvalidInput

# Of the interface, major and minor: not ForgeOne's own.
VERSION: Final = (1, 1)

# Modules that a core module imports from.
INTROSPECT: Final = f"forgeone:introspect@{VERSION[0]}"
LOG: Final = f"forgeone:log@{VERSION[0]}"
YIELD: Final = f"forgeone:yield@{VERSION[0]}"
# Interfaces that a component imports; wasmtime takes those of an older minor version for them, too.
INTROSPECT_INTERFACE: Final = f"forgeone:introspect/container@{VERSION[0]}.{VERSION[1]}.0"
LOG_INTERFACE: Final = f"forgeone:log/log@{VERSION[0]}.{VERSION[1]}.0"
YIELD_INTERFACE: Final = f"forgeone:yield/slice@{VERSION[0]}.{VERSION[1]}.0"

# In the order of their numbers on the wire, which never change.
STATES: Final = ("created", "booted", "running", "paused", "stopping", "terminated")
EVENTS: Final = ("boot", "start", "pause", "resume", "stop", "exit")
LEVELS: Final = ("trace", "debug", "info", "warn", "error", "critical")
IDENTITY: Final = ("id", "name", "pod-id")

# Of WASI preview 1; a core module gets them negative.
EFAULT: Final = 21
EINVAL: Final = 28

# struct forgeone_limits: memory, linear_memory, cpu_quota, cpu_period, cpu_shares, cpu_budget.
LIMITS: Final = struct.Struct("<6Q")
# struct forgeone_usage: cpu_user, cpu_system, resident_peak.
USAGE: Final = struct.Struct("<3Q")
# struct forgeone_trust: fingerprint, contract, entropy, score.
TRUST: Final = struct.Struct("<32s32sII")
# struct forgeone_transition: at, before, event, after, five bytes of padding.
TRANSITION: Final = struct.Struct("<QBBB5x")

_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})")
_FILES: Final = Path(__file__).parent

FILES: Final = MappingProxyType(
    {
        "forgeone.h": _FILES / "include" / "forgeone.h",
        "introspect.wit": _FILES / "wit" / "introspect.wit",
        "log.wit": _FILES / "wit" / "log.wit",
        "yield.wit": _FILES / "wit" / "yield.wit",
    }
)


def supports(required: str) -> bool:
    """Whether a guest that was built for version ``required`` (``MAJOR.MINOR``) of the interface finds all of it here.

    :raises InvalidInput: it is no version.
    """
    found = _VERSION.fullmatch(required)
    if found is None:
        raise InvalidInput("abi", f"{required!r} is not a version of the host's interface", fix="as 1.0")
    return int(found[1]) == VERSION[0] and int(found[2]) <= VERSION[1]
