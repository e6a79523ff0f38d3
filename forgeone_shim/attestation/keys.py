"""Keys that sign, and keys that are trusted: Ed25519 (RFC 8032), or ECDSA on P-256 with SHA-256, as PEM files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forgeone_shim.dropins.files import replaceable, untrusted
from forgeone_shim.errors import AlreadyExists, FailedPrecondition, NotFound, syscall_error

if TYPE_CHECKING:
    from forgeone_shim.attestation.algorithms import Private, Public

MAX_FILE: Final = 64 * 1024
MAX_KEYS: Final = 256
SUFFIXES: Final = (".pem", ".pub")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with. ``id`` is ``sha256:`` and the hash of its DER form."""

    id: str
    name: str = field(compare=False)
    _key: Public = field(repr=False, compare=False)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the owner of this key signed these bytes."""
        from forgeone_shim.attestation import algorithms

        return algorithms.verifies(self._key, signature, data)

    def pem(self) -> bytes:
        """What others are to trust."""
        from forgeone_shim.attestation import algorithms

        return algorithms.public_pem(self._key)


class SigningKey:
    """A key that signs. It is never shown."""

    def __init__(self, key: Private, name: str = "") -> None:
        self._key = key
        self.public = _public(key.public_key(), name)

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new Ed25519 key."""
        from forgeone_shim.attestation import algorithms

        return cls(algorithms.generate())

    def sign(self, data: bytes) -> bytes:
        """A signature over these bytes."""
        from forgeone_shim.attestation import algorithms

        return algorithms.sign(self._key, data)

    def save(self, path: Path) -> None:
        """Write it to a new file that only its owner can read.

        :raises AlreadyExists: there is such a file; a key is never written over.
        """
        from forgeone_shim.attestation import algorithms

        write_new(path, algorithms.private_pem(self._key), 0o600)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A file that was not there before, whole and on disk, or not there at all.

    :raises AlreadyExists: it was.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists", fix="choose another name, or move it away") from None
    except OSError as error:
        raise syscall_error("open", path, error) from None
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise syscall_error("write", path, error) from None
        raise


def read_signing_key(path: Path) -> SigningKey:
    """The private key of a PEM file without a password.

    :raises FailedPrecondition: others than its owner can read it, or it is no such key.
    """
    from forgeone_shim.attestation import algorithms

    data = _read(path, _exposed, fix=f"chmod 600 {path}")
    return SigningKey(algorithms.private(data, str(path)), path.name)


def read_public_key(path: Path) -> PublicKey:
    """The public key of a PEM file.

    :raises FailedPrecondition: others than root and this process's user can write it, or it is no such key.
    """
    return public_key(_read(path, untrusted, fix=f"chown root {path}; chmod go-w {path}"), str(path), path.name)


def public_key(data: bytes, where: str, name: str) -> PublicKey:
    """The public key of a PEM text, called ``name``; ``where`` is for errors.

    :raises FailedPrecondition: it is no such key.
    """
    from forgeone_shim.attestation import algorithms

    if b"PRIVATE KEY" in data:
        raise FailedPrecondition(f"{where}: holds a private key", fix="put the public one there")
    return _public(algorithms.public(data, where), name)


def read_trusted(directory: Path) -> tuple[PublicKey, ...]:
    """Every key of a directory (``*.pem``, ``*.pub``), by name of the file; none where there is no directory.

    One file that cannot be used makes the whole directory unusable: whoever put it there meant something by it. So does
    a way to it that others than root could turn elsewhere.

    :raises FailedPrecondition: naming the file and what is wrong with it.
    """
    try:
        files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
        fault = f"it {why}" if (why := untrusted(directory.stat())) else replaceable(str(directory))
        # A link's file has a way of its own.
        fault = next(filter(None, (fault, *(replaceable(str(file)) for file in files))), "")
        if files and fault:
            raise FailedPrecondition(
                f"{directory}: its keys are not trusted: {fault}", fix="let none but root write there"
            )
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise FailedPrecondition(f"{directory}: {error.strerror}") from error
    if len(files) > MAX_KEYS:
        raise FailedPrecondition(f"{directory}: has {len(files)} keys, more than {MAX_KEYS}")
    return tuple(read_public_key(file) for file in files)


def named(keys: Sequence[PublicKey], id_: str) -> PublicKey | None:
    """The key of this id."""
    return next((key for key in keys if key.id == id_), None)


def _public(key: Public, name: str) -> PublicKey:
    from forgeone_shim.attestation import algorithms

    return PublicKey(f"sha256:{sha256(algorithms.der(key)).hexdigest()}", name, key)


def _exposed(status: os.stat_result) -> str:
    return "others than its owner can read it" if status.st_mode & _OTHERS else ""


def _read(path: Path, faults: Callable[[os.stat_result], str], *, fix: str) -> bytes:
    try:
        # Not to be held up by a fifo of that name.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FailedPrecondition(f"{path}: is no file")
            if fault := faults(status):
                raise FailedPrecondition(f"{path}: {fault}", fix=fix)
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise NotFound("key", str(path)) from None
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise FailedPrecondition(f"{path}: larger than {MAX_FILE} bytes")
    return data
