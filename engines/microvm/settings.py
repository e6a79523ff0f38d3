"""The engine's part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from engines.microvm.boot import settings as boot
from engines.microvm.boot.settings import BootSettings
from forgeone_shim.errors import InvalidInput

# As docs/configuration.md says.
_DISK_SIZE: Final = 10 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The same names as ``[microvm]`` has, and those of ``[native]`` that count for every engine.

    Sizes in bytes, times in seconds. ``boot`` are the keys that say what machines boot.
    """

    boot: BootSettings = field(default_factory=BootSettings)
    vmm: str = "qemu"
    firecracker: str = "firecracker"
    cloud_hypervisor: str = "cloud-hypervisor"
    boot_timeout: float = 60.0
    memory: int = 256 << 20
    memory_overhead: int = 96 << 20
    vcpus_max: int = 0
    writable_layer: str = "memory"
    writable_layer_size: int = 0
    templates: bool = True
    reclaim: bool = True
    uid_base: int = 1_900_000_000
    log_size_max: int = 0
    log_rate: int = 0
    cgroup_driver: str = "auto"
    seccomp_profile_root: str = ""
    seccomp_default_profile: str = ""

    @property
    def disk_size(self) -> int:
        """Bytes of the disk that a container writes to, 0: it writes to the machine's memory."""
        if self.writable_layer != "disk":
            return 0
        return self.writable_layer_size or _DISK_SIZE


_SHARED = ("cgroup_driver", "seccomp_profile_root", "seccomp_default_profile")


def read(config: Mapping[str, Any]) -> Settings:
    """From ``{"microvm": {...}, "native": {...}}``; an unknown setting is an error."""
    given, native = dict(config.get("microvm", {})), config.get("native", {})
    own = {one.name for one in fields(Settings)} - {"boot", *_SHARED}
    of_boot = {one.name for one in fields(BootSettings)}
    if unknown := set(given) - own - of_boot:
        raise InvalidInput("microvm", f"unknown setting {sorted(unknown)[0]!r}")
    return Settings(
        boot=boot.read(given),
        **{name: value for name, value in given.items() if name in own},
        **{name: native[name] for name in _SHARED if name in native},
    )
