"""Signed notes: text, and Ed25519 signatures under it. https://c2sp.org/signed-note"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Protocol

from forgeone_shim.errors import FailedPrecondition, PermissionDenied

MAX_NOTE: Final = 1024 * 1024
MAX_SIGNATURES: Final = 100
_ED25519: Final = 0x01
_RAW, _SIGNATURE, _ID = 32, 64, 4
_SPLIT: Final = "\n\n"
_DASH: Final = "— "
_VKEY: Final = re.compile(r"(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]+={0,2})")
# All of ASCII's but the newline.
_CONTROLS: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")


class Key(Protocol):
    """What signs: :class:`~forgeone_shim.attestation.keys.SigningKey`."""

    def sign(self, data: bytes) -> bytes:
        """A signature over these bytes."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key under a name; ``raw`` is its 32 bytes (RFC 8032)."""

    name: str
    raw: bytes

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise FailedPrecondition(f"{self.name!r} names no key: it is empty, or has a blank or a plus in it")
        if len(self.raw) != _RAW:
            raise FailedPrecondition(f"the key of {self.name} has {len(self.raw)} bytes, not {_RAW}")

    @property
    def id(self) -> bytes:
        """Four bytes that tell keys of one name apart."""
        return sha256(self.name.encode() + b"\n" + bytes((_ED25519,)) + self.raw).digest()[:_ID]

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Of ``NAME+ID+KEY``. :raises FailedPrecondition: it is none, or its id is another key's."""
        found = _VKEY.fullmatch(text)
        if found is None:
            raise FailedPrecondition(f"{text[:200]!r} is no key of the form NAME+ID+KEY")
        data = _unbase64(found["key"])
        if data is None or len(data) != _RAW + 1 or data[0] != _ED25519:
            raise FailedPrecondition(f"the key of {found['name']} is no Ed25519 key")
        key = cls(found["name"], data[1:])
        if key.id.hex() != found["id"]:
            raise FailedPrecondition(f"the key of {key.name} has the id {key.id.hex()}, not {found['id']}")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(bytes((_ED25519,)) + self.raw)}"

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Whether the owner of this key signed these bytes."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signs, and what it is verified with."""

    verifier: Verifier
    key: Key = field(repr=False)


@dataclass(frozen=True, slots=True)
class Note:
    """A note that was opened: ``signers`` are those of the asked keys that signed ``text``."""

    text: str
    signers: tuple[Verifier, ...]


class BadNote(PermissionDenied):
    """No key that was asked for signed it, or one of them did not sign this."""


def sign(text: str, signers: Sequence[Signer]) -> bytes:
    """The note, with each one's signature. ``text`` ends with a newline."""
    if not text.endswith("\n") or _CONTROLS.search(text):
        raise ValueError("a note's text ends with a newline and has no other control characters")
    data = text.encode()
    lines = (f"{_DASH}{one.verifier.name} {_base64(one.verifier.id + one.key.sign(data))}\n" for one in signers)
    return f"{text}\n{''.join(lines)}".encode()


def open_note(data: bytes, verifiers: Sequence[Verifier], what: str) -> Note:
    """Read a note that at least one of the keys signed; signatures of others are passed over.

    :param what: what it is called.
    :raises FailedPrecondition: it is no note.
    :raises BadNote: none of the keys signed it, or a signature in the name of one of them is not its.
    """
    text, lines = _take_apart(data, what)
    known = {(one.name, one.id): one for one in verifiers}
    found: dict[tuple[str, bytes], Verifier] = {}
    for line in lines:
        name, id_, signature = _signature(line, what)
        verifier = known.get((name, id_))
        if verifier is None or (name, id_) in found:
            continue
        if len(signature) != _SIGNATURE or not verifier.verifies(signature, text.encode()):
            raise BadNote(f"{what}: the signature of {name} ({id_.hex()}) is not over what it says")
        found[name, id_] = verifier
    if not found:
        raise BadNote(f"{what}: no trusted key signed it")
    return Note(text, tuple(found.values()))


def text_of(data: bytes, what: str) -> str:
    """What a note says, whoever signed it. :raises FailedPrecondition: it is no note."""
    return _take_apart(data, what)[0]


def _take_apart(data: bytes, what: str) -> tuple[str, list[str]]:
    if len(data) > MAX_NOTE:
        raise FailedPrecondition(f"{what} is larger than {MAX_NOTE} bytes")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise FailedPrecondition(f"{what} is no note: it is not UTF-8") from None
    text, split, signatures = whole.rpartition(_SPLIT)
    if not split or not signatures.endswith("\n") or _CONTROLS.search(whole):
        raise FailedPrecondition(f"{what} is no note")
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise FailedPrecondition(f"{what} has more than {MAX_SIGNATURES} signatures")
    return text + "\n", lines


def _signature(line: str, what: str) -> tuple[str, bytes, bytes]:
    name, blank, text = line.removeprefix(_DASH).partition(" ")
    data = _unbase64(text)
    if not line.startswith(_DASH) or not blank or not _is_name(name) or data is None or len(data) <= _ID:
        raise FailedPrecondition(f"{what} is no note: {line[:100]!r} is no signature")
    return name, data[:_ID], data[_ID:]


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() for c in name) and not _CONTROLS.search(name)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes | None:
    """Only the one spelling that encoding gives."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _base64(data) == text else None
