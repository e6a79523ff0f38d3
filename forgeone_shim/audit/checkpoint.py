"""Checkpoints: what a log signs of its tree. https://c2sp.org/tlog-checkpoint"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forgeone_shim.audit import merkle, note
from forgeone_shim.audit.note import Signer, Verifier
from forgeone_shim.errors import FailedPrecondition

MAX_SIZE: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree of the log ``origin`` when it had ``size`` entries."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, signers: Sequence[Signer]) -> bytes:
        """The checkpoint as a note."""
        return note.sign(str(self), signers)


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint that was verified: the note as it was, and whose keys signed it."""

    checkpoint: Checkpoint
    data: bytes
    signers: tuple[Verifier, ...]


def parse(text: str, what: str) -> Checkpoint:
    """Read a note's text; extension lines are passed over. :raises FailedPrecondition: it is no checkpoint."""
    origin, *rest = text.split("\n")
    lines = [origin, *rest[:-1]]
    if len(lines) < 3 or rest[-1] or not all(lines):
        raise FailedPrecondition(f"{what} is no checkpoint")
    size = decimal(lines[1])
    root = hash_of(lines[2])
    if size is None or root is None:
        raise FailedPrecondition(f"{what} is no checkpoint: {'its size' if size is None else 'its root hash'}")
    return Checkpoint(origin, size, root)


def open_signed(data: bytes, verifiers: Sequence[Verifier], what: str) -> Signed:
    """Read a checkpoint that one of the keys signed, each being its log's own.

    :raises FailedPrecondition: it is no checkpoint. :raises ~forgeone_shim.audit.note.BadNote: none of them signed it.
    """
    opened = note.open_note(data, verifiers, what)
    found = parse(opened.text, what)
    for signer in opened.signers:
        if signer.name != found.origin:
            raise note.BadNote(f"{what}: the key of {signer.name} signed it in the name of {found.origin}")
    return Signed(found, data, opened.signers)


def decimal(text: str) -> int | None:
    """A number without leading zeros, ``None`` where it is none."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or (text[0] == "0" and text != "0"):
        return None
    number = int(text)
    return number if number <= MAX_SIZE else None


def hash_of(text: str) -> bytes | None:
    """A hash in base64, ``None`` where it is none."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if len(data) == merkle.HASH_SIZE and base64.b64encode(data).decode() == text else None
