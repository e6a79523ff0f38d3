"""A boot set: a directory with a kernel, an initrd, and the manifest that says what both are, perhaps signed."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final

from engines.microvm.boot import manifest as manifests
from engines.microvm.boot.manifest import Item, Manifest
from engines.microvm.boot.settings import BootSettings
from engines.microvm.vmm.base import Accel
from forgeone_shim.attestation import dsse, keys
from forgeone_shim.dropins.files import replaceable, untrusted
from forgeone_shim.errors import FailedPrecondition, ForgeError, PermissionDenied, syscall_error

KERNEL: Final = "kernel"
INITRD: Final = "initrd"
MANIFEST: Final = "manifest.json"
ENVELOPE: Final = "manifest.dsse.json"
_FILES: Final = (KERNEL, INITRD)

# What stat(2) says of a file: device, inode, size, and when its content and itself last changed.
_Mark = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSet:
    """What machines boot. ``digest`` is the manifest's (``sha256:`` and 64 digits); ``signers`` are ids of keys.

    ``marks`` are those of kernel and initrd when they had the manifest's digests.
    """

    directory: Path
    manifest: Manifest
    digest: str
    signers: tuple[str, ...]
    marks: tuple[_Mark, ...]

    @property
    def kernel(self) -> str:
        """The path of the kernel: an ELF image with a PVH entry."""
        return str(self.directory / KERNEL)

    @property
    def initrd(self) -> str:
        """The path of the initrd."""
        return str(self.directory / INITRD)

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


def load(directory: Path, settings: BootSettings) -> BootSet:
    """Read a boot set, all of it: each file has the manifest's digest, and who signed is known.

    :raises FailedPrecondition: a file is missing, is not what the manifest says, or others than root could change it.
    :raises PermissionDenied: it has to be signed and is not, or a signature is not over it.
    """
    found = read(directory)
    return replace(found, signers=_required(found, settings))


def read(directory: Path) -> BootSet:
    """The same, whoever signed it."""
    try:
        fault = next(filter(None, (replaceable(str(directory / name)) for name in (MANIFEST, *_FILES))), "")
    except OSError as error:
        raise _failure("stat", directory, error) from None
    if fault:
        raise FailedPrecondition(f"{directory}: {fault}", fix="let none but root write there")
    data = _read(directory / MANIFEST, manifests.MAX_MANIFEST)
    found = manifests.decode(data, str(directory / MANIFEST))
    items = zip(_FILES, (found.kernel, found.initrd), strict=True)
    return BootSet(
        directory=directory,
        manifest=found,
        digest=f"sha256:{sha256(data).hexdigest()}",
        signers=(),
        marks=tuple(_digested(directory / name, item) for name, item in items),
    )


def check(known: BootSet, settings: BootSettings) -> BootSet:
    """The same, before a machine boots it, or begins as a template's clone: quick while nothing has changed.

    Keys and signature are read each time, so that a key that was taken away counts no more.

    :raises ForgeError: as :func:`load`.
    """
    directory = known.directory
    if known.marks != tuple(_mark(_status(directory / name)) for name in _FILES):
        return load(directory, settings)
    found = _required(known, settings)
    return known if found == known.signers else replace(known, signers=found)


def sign(directory: Path, key: keys.SigningKey) -> BootSet:
    """Put the key's signature over the manifest beside it; those of others stay.

    :raises ForgeError: the set is not what its manifest says.
    """
    found = read(directory)
    payload = manifests.encode(found.manifest)
    path = directory / ENVELOPE
    envelope = dsse.Envelope(manifests.PAYLOAD_TYPE, payload)
    if path.exists():
        envelope = _envelope(path, payload)
    made = directory / f".{ENVELOPE}.{os.getpid()}"
    try:
        keys.write_new(made, dsse.encode(dsse.sign(envelope, key)), 0o444)
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    return found


def signers(known: BootSet, trusted: Sequence[keys.PublicKey]) -> tuple[str, ...]:
    """The ids of those of these keys that signed the set's manifest.

    :raises PermissionDenied: a signature is not over it, or the envelope is about another one.
    """
    path = known.directory / ENVELOPE
    if not path.exists():
        return ()
    envelope = _envelope(path, manifests.encode(known.manifest))
    return tuple(sorted(key.id for key in dsse.signers(envelope, trusted, str(path))))


def _required(known: BootSet, settings: BootSettings) -> tuple[str, ...]:
    found = signers(known, keys.read_trusted(Path(settings.boot_keys)))
    if settings.require_signed_boot and not found:
        raise PermissionDenied(
            f"{known.directory}: no key in {settings.boot_keys} signed it, as microvm.require_signed_boot asks",
            fix=f"forge microvm sign --key FILE {known.directory}",
        )
    return found


def _envelope(path: Path, payload: bytes) -> dsse.Envelope:
    envelope = dsse.parse(_read(path, dsse.MAX_ENVELOPE), str(path))
    if envelope.payload_type != manifests.PAYLOAD_TYPE or envelope.payload != payload:
        raise PermissionDenied(f"{path} is not about the manifest beside it")
    return envelope


def _digested(path: Path, item: Item) -> _Mark:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _failure("read", path, error) from None
    _trusted(path, status)
    if status.st_size != item.size or f"sha256:{digest}" != item.digest:
        raise FailedPrecondition(
            f"{path} is not what its manifest says: sha256:{digest}, and not {item.digest}",
            fix=f"find out who changed it; rm -r {path.parent} has it made anew",
        )
    return _mark(status)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(limit + 1)
    except OSError as error:
        raise _failure("read", path, error) from None
    _trusted(path, status)
    return data


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _failure("stat", path, error) from None


def _trusted(path: Path, status: os.stat_result) -> None:
    fault = "is no file" if not stat.S_ISREG(status.st_mode) else untrusted(status)
    if fault:
        raise FailedPrecondition(f"{path}: {fault}", fix=f"chown root {path}; chmod go-w {path}")


def _failure(step: str, path: Path, error: OSError) -> ForgeError:
    if isinstance(error, FileNotFoundError):
        return FailedPrecondition(f"this is no whole boot set: {path}: {error.strerror}")
    return syscall_error(step, path, error)


def _mark(status: os.stat_result) -> _Mark:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
