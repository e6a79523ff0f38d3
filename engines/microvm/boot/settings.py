"""The part of ``[microvm]`` that says what machines boot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSettings:
    """The same names as in ``[microvm]``; what is empty is looked for, or made."""

    vmm: str = "qemu"
    qemu: str = "qemu-system-x86_64"
    accel: str = "auto"
    boot_set: str = ""
    kernel: str = ""
    modules_dir: str = ""
    agent: str = ""
    boot_keys: str = "/etc/forgeone/boot.d"
    require_signed_boot: bool = False


def read(section: Mapping[str, Any]) -> BootSettings:
    """From the mapping of ``[microvm]``; its other keys are others' to read."""
    names = {field.name for field in fields(BootSettings)}
    return BootSettings(**{name: value for name, value in section.items() if name in names})
