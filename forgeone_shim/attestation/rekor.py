"""Entries of a transparency log: that a log whose key is trusted has a signature, and since when.

Rekor's entries of version 1 come with a promise, the signed entry timestamp; those of version 2 with a proof of
inclusion and a checkpoint. https://github.com/sigstore/rekor/blob/main/openapi.yaml,
https://github.com/sigstore/architecture-docs/blob/main/rekor-v2-spec.md, RFC 6962 section 2.1.1,
https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from forgeone_shim.attestation import certificates, publickeys
from forgeone_shim.attestation.publickeys import VerifyingKey
from forgeone_shim.attestation.signed import InclusionProof, LogEntry, Signed, Unverified
from forgeone_shim.errors import FailedPrecondition

_DASH = "\u2014 "
_HINT = 4
# A log signs its own checkpoints once, or with two keys while one takes the place of the other.
_MAX_SIGNATURES = 4


def witnessed(this: Signed, verifier: bytes, logs: Sequence[VerifyingKey], *, timed: bool = False) -> int:
    """When a log took this signature in, in seconds since the epoch; 0 where its entry does not prove a time.

    :param verifier: what the signature was verified with: a certificate or a SubjectPublicKeyInfo, DER.
    :param timed: only an entry that proves a time will do.
    :raises Unverified: no trusted log has it.
    """
    if not this.entries:
        raise Unverified(f"{this.name} has no entry of a transparency log")
    fault = ""
    for entry in this.entries:
        try:
            _check_body(entry, this, verifier)
            if entry.promise:
                _check_promise(entry, logs)
                return entry.integrated
            if timed:
                raise Unverified("its log entry has no signed timestamp")
            _check_inclusion(entry, logs)
            return 0
        except Unverified as error:
            fault = error.what
    raise Unverified(f"{this.name}: {fault}")


def _check_promise(entry: LogEntry, logs: Sequence[VerifyingKey]) -> None:
    said: dict[str, str | int] = {
        "body": base64.b64encode(entry.body).decode(),
        "integratedTime": entry.integrated,
        "logID": entry.log_id.hex(),
        "logIndex": entry.index,
    }
    try:
        message = rfc8785.dumps(said)
    except rfc8785.CanonicalizationError:
        raise Unverified("its log entry has a number that is out of range") from None
    for log in logs:
        if log.id == f"sha256:{entry.log_id.hex()}" and log.verifies(entry.promise, message):
            return
    raise Unverified("the signed timestamp of its log entry is of no trusted log")


def _check_inclusion(entry: LogEntry, logs: Sequence[VerifyingKey]) -> None:
    if entry.proof is None:
        raise Unverified("its log entry has neither a signed timestamp nor a proof of inclusion")
    size, root = _checkpoint(entry.proof.checkpoint, logs)
    if size != entry.proof.size or root_of(entry.body, entry.proof) != root:
        raise Unverified("its log entry is not in the tree that the log's checkpoint is of")


def root_of(body: bytes, proof: InclusionProof) -> bytes:
    """The root of the tree that has this body where the proof says. :raises Unverified: the proof has no such form."""
    if not 0 <= proof.index < proof.size:
        raise Unverified("its proof of inclusion is of no entry")
    node, index, last = sha256(b"\x00" + body).digest(), proof.index, proof.size - 1
    for each in proof.hashes:
        if last == 0:
            raise Unverified("its proof of inclusion is too long")
        if index & 1 or index == last:
            node = sha256(b"\x01" + each + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = sha256(b"\x01" + node + each).digest()
        index, last = index >> 1, last >> 1
    if last != 0:
        raise Unverified("its proof of inclusion is too short")
    return node


def _checkpoint(text: str, logs: Sequence[VerifyingKey]) -> tuple[int, bytes]:
    """Size and root of a checkpoint that a trusted log signed; others' signatures below it say nothing."""
    note, blank, signatures = text.partition("\n\n")
    lines = note.split("\n")
    if not blank or len(lines) < 3 or not lines[0] or not lines[1].isdecimal() or len(lines[1]) > 19:
        raise Unverified("the checkpoint of its log entry cannot be read")
    message = f"{note}\n".encode()
    own = f"{_DASH}{lines[0].partition(' ')[0]} "
    for line in [each for each in signatures.splitlines() if each.startswith(own)][:_MAX_SIGNATURES]:
        value = _decoded(line.removeprefix(own))[_HINT:]
        if any(log.verifies(value, message) for log in logs):
            return int(lines[1]), _decoded(lines[2])
    raise Unverified("the checkpoint of its log entry is of no trusted log")


def _check_body(entry: LogEntry, this: Signed, verifier: bytes) -> None:
    """The entry is about this signature, and not about another one (CVE-2022-36056)."""
    try:
        body: Any = msgspec.json.decode(entry.body)
        kind, version, spec = body["kind"], body["apiVersion"], body["spec"]
        found = _SPECS[kind, version](spec, this, verifier)
    except (msgspec.MsgspecError, LookupError, AttributeError, RecursionError, *certificates.UNREADABLE):
        raise Unverified("its log entry is of no known kind") from None
    if not found:
        raise Unverified("its log entry is about another signature")


def _hashedrekord_1(spec: Any, this: Signed, verifier: bytes) -> bool:
    return (
        spec["data"]["hash"] == {"algorithm": "sha256", "value": this.digest.hex()}
        and _decoded(spec["signature"]["content"]) == this.signature
        and _pem(_decoded(spec["signature"]["publicKey"]["content"])) == verifier
    )


def _dsse_1(spec: Any, this: Signed, verifier: bytes) -> bool:
    (one,) = spec["signatures"]
    return (
        spec["payloadHash"] == {"algorithm": "sha256", "value": sha256(this.payload).hexdigest()}
        and _decoded(one["signature"]) == this.signature
        and _pem(_decoded(one["verifier"])) == verifier
    )


def _hashedrekord_2(spec: Any, this: Signed, verifier: bytes) -> bool:
    said = spec["hashedRekordV002"]
    return (
        said["data"]["algorithm"] == "SHA2_256"
        and _decoded(said["data"]["digest"]) == this.digest
        and _decoded(said["signature"]["content"]) == this.signature
        and _raw(said["signature"]["verifier"]) == verifier
    )


def _dsse_2(spec: Any, this: Signed, verifier: bytes) -> bool:
    said = spec["dsseV002"]
    (one,) = said["signatures"]
    return (
        said["payloadHash"]["algorithm"] == "SHA2_256"
        and _decoded(said["payloadHash"]["digest"]) == sha256(this.payload).digest()
        and _decoded(one["content"]) == this.signature
        and _raw(one["verifier"]) == verifier
    )


_SPECS = {
    ("hashedrekord", "0.0.1"): _hashedrekord_1,
    ("dsse", "0.0.1"): _dsse_1,
    ("hashedrekord", "0.0.2"): _hashedrekord_2,
    ("dsse", "0.0.2"): _dsse_2,
}


def _raw(verifier: Any) -> bytes:
    return _decoded((verifier.get("x509Certificate") or verifier["publicKey"])["rawBytes"])


def _pem(text: bytes) -> bytes:
    """The DER form of a certificate or a public key."""
    if b"BEGIN CERTIFICATE" in text:
        return x509.load_pem_x509_certificate(text).public_bytes(Encoding.DER)
    try:
        return publickeys.read(text, "the key").der
    except FailedPrecondition:
        raise ValueError("no key") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Unverified("its log entry has what is no base64") from None
