"""What compiled code depends on beside its module: part of its key, for code of another kind would not load.

A compiled module (.cwasm) is native code of one wasmtime version, for one set of options and one kind of CPU.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
# x86's name for them and arm64's; of each CPU, but a kernel runs on CPUs that are alike.
_FEATURES: Final = re.compile(rb"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


class Kind(StrEnum):
    """What a binary is by its first bytes: a core module, or a component of the component model."""

    MODULE = "module"
    COMPONENT = "component"


class Variant(StrEnum):
    """How code is compiled. ``METERED`` code looks at an epoch in each loop, so that it can be ended or interrupted
    from another thread; that costs it a third of its speed."""

    PLAIN = "plain"
    METERED = "metered"


_COMMON: Final[Mapping[str, bool | int | str]] = MappingProxyType(
    {
        "cranelift_opt_level": "speed",
        "memory_init_cow": True,
    }
)
# Of wasmtime.Config. What is not named is as wasmtime has it.
OPTIONS: Final[Mapping[Variant, Mapping[str, bool | int | str]]] = MappingProxyType(
    {
        Variant.PLAIN: MappingProxyType({**_COMMON, "epoch_interruption": False}),
        Variant.METERED: MappingProxyType({**_COMMON, "epoch_interruption": True}),
    }
)


def wasmtime_version() -> str:
    """Of the installed package, which this process need not have imported."""
    # Not at the top: it brings fifty modules, which the zygote, which needs the names here alone, does without.
    from importlib import metadata

    return metadata.version("wasmtime")


def cpu_features(cpuinfo: bytes) -> str:
    """Of a text like ``/proc/cpuinfo``: the features of its first CPU in an order that says nothing."""
    found = _FEATURES.search(cpuinfo)
    names = b"" if found is None else b" ".join(sorted(found[1].split()))
    return names.decode("ascii", "replace")


@functools.cache
def fingerprint(variant: Variant) -> str:
    """Everything but the module that compiled code depends on, as it is on this host (hex)."""
    machine = os.uname().machine
    parts = [wasmtime_version(), machine, cpu_features(_CPUINFO.read_bytes()), dict(OPTIONS[variant])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def key(digest: str, variant: Variant) -> str:
    """The name of a compiled module: of the module's own ``digest`` (sha256, hex) and all it was compiled for (hex)."""
    return hashlib.sha256(f"{digest} {fingerprint(variant)}".encode()).hexdigest()
