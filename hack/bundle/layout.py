"""Names that the bundle, the node's installer and the chart agree on, and what depends on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from forgeone_shim.errors import FailedPrecondition

REPOSITORY: Final = Path(__file__).resolve().parents[2]
NAME: Final = "forgeone"
VERSIONS: Final = "/opt/forgeone/versions"
CURRENT: Final = "/opt/forgeone/current"
STANDARD: Final = "standard"
MICROVM: Final = "microvm"
"""The flavours: with QEMU and a kernel for virtual machines, or without."""
MANIFEST: Final = "manifest.json"
RELOCATE: Final = "relocate"
UNIT: Final = "share/systemd/forgeoned.service"
PROGRAMS: Final = "lib/forgeone"
"""What commands execute: the interpreter, its names, and the scripts of the commands."""
SITE: Final = "lib/python3/dist-packages"
"""Where Debian's site.py looks below its prefix (in -I mode, too)."""
AUTHORITIES: Final = "share/ca-certificates.crt"
FIELD: Final = 240
"""Bytes of the two paths in each program that ``relocate`` overwrites; a prefix may have 200 or so."""


@dataclass(frozen=True, slots=True)
class Arch:
    """One processor under its several names."""

    debian: str
    machine: str
    loader: str
    multiarch: str


_ARCHES: Final[Mapping[str, Arch]] = MappingProxyType(
    {
        arch.debian: arch
        for arch in (
            Arch("amd64", "x86_64", "ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
            Arch("arm64", "aarch64", "ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
        )
    }
)


def arch(debian: str) -> Arch:
    """By Debian's name (``dpkg --print-architecture``).

    :raises FailedPrecondition: bundles are not made for it.
    """
    try:
        return _ARCHES[debian]
    except KeyError:
        known = ", ".join(_ARCHES)
        raise FailedPrecondition(f"bundles are made for {known}; this host is {debian}") from None


def prefix(version: str) -> str:
    """Where a bundle lies unless it is relocated."""
    return f"{VERSIONS}/{version}"
