"""Proofs that can be checked away from the log: of an entry (a receipt), and that one log goes on from another."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forgeone_shim.audit import checkpoint, merkle
from forgeone_shim.audit.checkpoint import Signed
from forgeone_shim.audit.note import Verifier
from forgeone_shim.audit.snapshot import Snapshot
from forgeone_shim.errors import FailedPrecondition, PermissionDenied

MAX_PROOF: Final = 256 * 1024
# A path through a tree of as many entries as a checkpoint can count.
MAX_HASHES: Final = 64
_FIRST: Final = "c2sp.org/tlog-proof@v1"


class BadProof(PermissionDenied):
    """A proof that does not show what it is said to."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A proof that an entry is in the log. https://c2sp.org/tlog-proof

    ``extra`` is the entry, so that nobody has to ask for it.
    """

    index: int
    hashes: tuple[bytes, ...]
    note: bytes
    extra: bytes = b""

    @classmethod
    def of(cls, log: Snapshot, index: int) -> Receipt:
        """That of one entry. :raises NotFound: there is none, or it was given up."""
        entry = log.entry(index)
        path = merkle.inclusion(index, log.size, log.subtree)
        return cls(index, tuple(path), log.signed.data, entry)

    def encode(self) -> bytes:
        """The proof as text."""
        extra = [f"extra {_base64(self.extra)}"] if self.extra else []
        lines = [_FIRST, *extra, f"index {self.index}", *map(_base64, self.hashes), "", ""]
        return "\n".join(lines).encode() + self.note

    @classmethod
    def parse(cls, data: bytes) -> Receipt:
        """Read a proof; nothing of it is verified. :raises FailedPrecondition: it is none."""
        head, note = _split(data, "a receipt")
        first, *lines = head
        if first != _FIRST or not lines:
            raise FailedPrecondition(f"not a receipt: it does not begin with {_FIRST}")
        extra = b""
        if lines[0].startswith("extra "):
            extra = _unbase64(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise FailedPrecondition("not a receipt: it has no index")
        index = checkpoint.decimal(lines[0].removeprefix("index "))
        if index is None:
            raise FailedPrecondition("not a receipt: its index is no number")
        return cls(index, _hashes(lines[1:], "a receipt"), note, extra)

    def verify(self, entry: bytes, verifiers: Sequence[Verifier]) -> Signed:
        """The checkpoint under which the log of one of these keys has this entry.

        :raises BadProof: it has not. :raises ~forgeone_shim.audit.note.BadNote: none of the keys signed it.
        """
        signed = checkpoint.open_signed(self.note, verifiers, "the receipt's checkpoint")
        found = signed.checkpoint
        if not merkle.included(self.index, found.size, merkle.leaf(entry), self.hashes, found.root):
            raise BadProof(f"the receipt is not of this entry, or not at {self.index}")
        return signed


@dataclass(frozen=True, slots=True)
class Growth:
    """A proof that the log only grew since it had ``old`` entries: what a witness is asked with.

    https://c2sp.org/tlog-witness, the body of ``add-checkpoint``.
    """

    old: int
    hashes: tuple[bytes, ...]
    note: bytes

    @classmethod
    def of(cls, log: Snapshot, old: int) -> Growth:
        """Since it had so many entries. :raises FailedPrecondition: it never had, or gave up what is needed."""
        if not 0 <= old <= log.size:
            raise FailedPrecondition(f"the log has {log.size} entries, it never had {old}")
        return cls(old, tuple(merkle.consistency(old, log.size, log.subtree)), log.signed.data)

    def encode(self) -> bytes:
        """The proof as text."""
        return "\n".join([f"old {self.old}", *map(_base64, self.hashes), "", ""]).encode() + self.note

    @classmethod
    def parse(cls, data: bytes) -> Growth:
        """Read a proof; nothing of it is verified. :raises FailedPrecondition: it is none."""
        (first, *lines), note = _split(data, "a proof")
        old = checkpoint.decimal(first.removeprefix("old ")) if first.startswith("old ") else None
        if old is None:
            raise FailedPrecondition("not a proof: it does not begin with a size")
        return cls(old, _hashes(lines, "a proof"), note)

    def verify(self, old: Signed, verifiers: Sequence[Verifier]) -> Signed:
        """The newer checkpoint, that the log of one of these keys grew to.

        :raises BadProof: it did not grow from there. :raises ~forgeone_shim.audit.note.BadNote: no key signed it.
        """
        signed = checkpoint.open_signed(self.note, verifiers, "the proof's checkpoint")
        before, after = old.checkpoint, signed.checkpoint
        if before.origin != after.origin:
            raise BadProof(f"the proof is of {after.origin}, and the checkpoint of {before.origin}")
        if before.size != self.old or not merkle.consistent(self.old, after.size, before.root, after.root, self.hashes):
            raise BadProof(f"{after.origin} did not grow from the {before.size} entries that it had")
        return signed


def _split(data: bytes, what: str) -> tuple[list[str], bytes]:
    """The lines before the first empty one, and the note behind it."""
    if len(data) > MAX_PROOF:
        raise FailedPrecondition(f"{what} is larger than {MAX_PROOF} bytes")
    head, found, note = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise FailedPrecondition(f"{what} is none: it is not ASCII") from None
    if not found:
        raise FailedPrecondition(f"{what} is none: it has no checkpoint")
    return lines, note


def _hashes(lines: Sequence[str], what: str) -> tuple[bytes, ...]:
    if len(lines) > MAX_HASHES:
        raise FailedPrecondition(f"{what} has more than {MAX_HASHES} hashes")
    found = tuple(checkpoint.hash_of(line) for line in lines)
    if None in found:
        raise FailedPrecondition(f"{what} is none: {lines[found.index(None)][:100]!r} is no hash")
    return tuple(one for one in found if one is not None)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FailedPrecondition("not a receipt: what comes with it is no base64") from None
