"""A boot set: a directory with a kernel, an initrd, and the manifest that says what both are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.microvm.boot.manifest import Manifest
from engines.microvm.vmm.base import Accel


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSet:
    """What machines boot. ``digest`` is the manifest's (``sha256:`` and 64 digits); ``signers`` are ids of keys."""

    directory: Path
    manifest: Manifest
    digest: str
    signers: tuple[str, ...] = ()

    @property
    def kernel(self) -> str:
        """The path of the kernel: an ELF image with a PVH entry."""
        return str(self.directory / "kernel")

    @property
    def initrd(self) -> str:
        """The path of the initrd."""
        return str(self.directory / "initrd")

    def cmdline(self, accel: Accel, khz: int = 0) -> str:
        """The kernel's command line. ``khz`` is the frequency of the host's clock, which TCG needs."""
        if accel is Accel.KVM:
            return self.manifest.cmdline.kvm
        return f"{self.manifest.cmdline.tcg} tsc_early_khz={khz}"

    def facts(self) -> Mapping[str, str]:
        """What a container's fingerprint says of it."""
        return {
            "boot": self.digest,
            "kernel": self.manifest.kernel.digest,
            "kernel_release": self.manifest.release,
            "initrd": self.manifest.initrd.digest,
            "agent": self.manifest.agent.digest,
            "boot_signers": " ".join(self.signers),
        }
