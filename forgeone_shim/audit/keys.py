"""The node's key: what signs its log's checkpoints. An Ed25519 key in a file that is root's alone."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

from forgeone_shim.attestation.keys import PublicKey, SigningKey, read_public_key, read_signing_key, write_new
from forgeone_shim.audit import note
from forgeone_shim.audit.files import sync_directory
from forgeone_shim.audit.note import Signer, Verifier
from forgeone_shim.errors import FailedPrecondition

KEY: Final = "node.pem"
PUBLIC: Final = "node.pub"
_NEXT: Final = "node.next.pem"
_NEW: Final = ".new"
# SubjectPublicKeyInfo of an Ed25519 key, but for its 32 bytes (RFC 8410 section 4).
_SPKI: Final = bytes.fromhex("302a300506032b6570032100")
_ROTATION: Final = "forgeone.dev/audit/key-rotation/v1"


def verifier(name: str, public: PublicKey) -> Verifier:
    """A public key under a log's name. :raises FailedPrecondition: it is no Ed25519 key."""
    lines = public.pem().decode().split("\n")
    der = base64.b64decode("".join(line for line in lines if not line.startswith("-")))
    if not der.startswith(_SPKI):
        raise FailedPrecondition(f"{public.name or public.id} is no Ed25519 key")
    return Verifier(name, der[len(_SPKI) :])


def signer(name: str, key: SigningKey) -> Signer:
    """A private key under a log's name."""
    return Signer(verifier(name, key.public), key)


def read_verifiers(directory: Path, name: str) -> tuple[Verifier, ...]:
    """The node's public key, and the one it is being replaced with, for those who verify.

    :raises NotFound: there is none. :raises FailedPrecondition: it cannot be used.
    """
    found = [read_public_key(directory / PUBLIC)]
    if (directory / _NEXT).exists():
        found.append(read_signing_key(directory / _NEXT).public)
    return tuple(verifier(name, key) for key in found)


def endorsement(origin: str, old: Signer, new: Signer) -> str:
    """That a log's checkpoints are signed by another key from now on: a note that both keys signed."""
    text = f"{_ROTATION}\n{origin}\n{old.verifier}\n{new.verifier}\n"
    return note.sign(text, (old, new)).decode()


def endorsed(data: str, origin: str) -> tuple[Verifier, Verifier]:
    """The old and the new key of such a note, both of which signed it.

    :raises FailedPrecondition: it is none, or of another log. :raises ~forgeone_shim.audit.note.BadNote: not signed.
    """
    what = "a key rotation"
    lines = note.text_of(data.encode(), what).split("\n")
    if len(lines) != 5 or lines[:2] != [_ROTATION, origin]:
        raise FailedPrecondition(f"{what} is none, or one of another log")
    old, new = Verifier.parse(lines[2]), Verifier.parse(lines[3])
    if set(note.open_note(data.encode(), (old, new), what).signers) != {old, new}:
        raise note.BadNote(f"{what}: not both keys signed it")
    return old, new


class NodeKey:
    """The key's files. The one that is to come next lies beside it until the log speaks of it."""

    def __init__(self, directory: Path) -> None:
        """Read it, or make it where there is none yet.

        :raises FailedPrecondition: it cannot be used. :raises InternalError: it cannot be made.
        """
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.made = not (directory / KEY).exists()
        if self.made:
            self._place(SigningKey.generate(), KEY)
        self.current = read_signing_key(directory / KEY)
        verifier(KEY, self.current.public)
        self.next = read_signing_key(directory / _NEXT) if (directory / _NEXT).exists() else None
        self._publish(self.current)

    def stage(self) -> SigningKey:
        """Make the next key. :raises InternalError: it cannot be written."""
        made = SigningKey.generate()
        self._place(made, _NEXT)
        self.next = made
        return made

    def adopt(self) -> None:
        """The next key takes the place of the current one, which is gone then."""
        if self.next is None:
            raise FailedPrecondition("there is no next key")
        # In this order whoever verifies finds the new one, wherever this is cut off.
        self._publish(self.next)
        (self._directory / _NEXT).replace(self._directory / KEY)
        sync_directory(self._directory)
        self.current, self.next = self.next, None

    def drop_next(self) -> None:
        """Forget the next key."""
        (self._directory / _NEXT).unlink(missing_ok=True)
        self.next = None

    def _publish(self, key: SigningKey) -> None:
        path, pem = self._directory / PUBLIC, key.public.pem()
        if not path.exists() or path.read_bytes() != pem:
            new = path.with_name(PUBLIC + _NEW)
            new.unlink(missing_ok=True)
            write_new(new, pem, 0o644)
            new.replace(path)

    def _place(self, key: SigningKey, name: str) -> None:
        new = self._directory / (name + _NEW)
        new.unlink(missing_ok=True)
        key.save(new)
        new.replace(self._directory / name)
        sync_directory(self._directory)
