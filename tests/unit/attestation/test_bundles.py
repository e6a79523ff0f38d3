"""Sigstore bundles: those of others verify, and none does that was touched."""

from __future__ import annotations

import base64
import contextlib
import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.attestation import bundles, legacy, publickeys, rekor, statements
from forgeone_shim.attestation.authorities import Keys
from forgeone_shim.attestation.evidence import LegacyAttestation
from forgeone_shim.attestation.signed import InclusionProof, Unverified
from forgeone_shim.errors import FailedPrecondition
from tests.unit.attestation import making
from tests.unit.attestation.making import DIGEST, NOW, OTHER, P256, bundle, fixture, pem

ARTIFACT = sha256(b"test artifact").digest()
LOG = making.Log()
GOOD = json.loads(bundle(P256, log=LOG))


def key(name: str) -> publickeys.VerifyingKey:
    return publickeys.read(fixture(f"sigstore-conformance/{name}.pub"), name)


@pytest.mark.parametrize("name", ["managed-key", "managed-key-staging"])
def test_cosign_s_bundles_with_keys_verify_and_only_with_theirs(name: str) -> None:
    read = bundles.parse(fixture(f"sigstore-conformance/{name}.json"), "it")
    signer = Keys((key(name),)).verify(read, NOW)
    assert signer.name.startswith("key:sha256:")
    other = Keys((publickeys.read(pem(P256), "other"),))
    with pytest.raises(Unverified, match="none of the trusted keys"):
        other.verify(read, NOW)


def test_a_malformed_key_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="not a public key"):
        key("malformed")


def test_the_public_log_s_entry_is_verified_by_promise_and_by_proof() -> None:
    log = publickeys.read(fixture("containers-image/rekor.pub"), "log")
    read = bundles.parse(fixture("sigstore-conformance/managed-key.json"), "it")
    assert rekor.witnessed(read, key("managed-key").der, (log,)) == 1766077479
    unpromised = json.loads(fixture("sigstore-conformance/managed-key.json"))
    entry = unpromised["verificationMaterial"]["tlogEntries"][0]
    del entry["inclusionPromise"]
    read = bundles.parse(json.dumps(unpromised).encode(), "it")
    assert rekor.witnessed(read, key("managed-key").der, (log,)) == 0
    with pytest.raises(Unverified, match="no signed timestamp"):
        rekor.witnessed(read, key("managed-key").der, (log,), timed=True)
    for change in (
        lambda proof: proof["hashes"].pop(),
        lambda proof: proof["hashes"].append(proof["hashes"][0]),
        lambda proof: proof.update(logIndex="5"),
        lambda proof: proof.update(treeSize="649584077"),
        lambda proof: proof["hashes"].reverse(),
    ):
        touched = json.loads(json.dumps(unpromised))
        change(touched["verificationMaterial"]["tlogEntries"][0]["inclusionProof"])
        with pytest.raises(Unverified):
            rekor.witnessed(bundles.parse(json.dumps(touched).encode(), "it"), key("managed-key").der, (log,))


def test_another_signature_s_log_entry_is_no_witness() -> None:
    log = publickeys.read(fixture("containers-image/rekor.pub"), "log")
    one, other = (json.loads(fixture(f"sigstore-conformance/managed-key{suffix}.json")) for suffix in ("", "-staging"))
    other["verificationMaterial"]["tlogEntries"] = one["verificationMaterial"]["tlogEntries"]
    read = bundles.parse(json.dumps(other).encode(), "it")
    with pytest.raises(Unverified, match="about another signature"):
        rekor.witnessed(read, key("managed-key-staging").der, (log,))


@pytest.mark.parametrize("form", ["dsse", "hashedrekord"])
@pytest.mark.parametrize("what", ["payload", "signature", "key", ""])
def test_a_log_entry_has_to_be_of_this_payload_signature_and_key(form: str, what: str) -> None:
    log = making.Log()
    payload = making.statement()
    signed = json.loads(bundle(P256, payload))
    message = making.dsse.pae(making.IN_TOTO, payload)
    signature = base64.b64decode(signed["dsseEnvelope"]["signatures"][0]["sig"])
    body = making.dsse_body if form == "dsse" else making.hashedrekord_body
    about = {"payload": payload if form == "dsse" else message, "signature": signature, "key": pem(P256)}
    other = {"payload": b"another", "signature": making.sign(P256, message), "key": pem(making.STRANGER)}
    entry = log.entry(body(*({**about, what: other[what]} if what else about).values()), form)
    signed["verificationMaterial"]["tlogEntries"] = [entry]
    read = bundles.parse(json.dumps(signed).encode(), "it")
    key_, trusted = publickeys.read(pem(P256), "key"), publickeys.read(pem(log.key), "log")
    if what:
        with pytest.raises(Unverified, match="about another signature"):
            rekor.witnessed(read, key_.der, (trusted,))
    else:
        assert rekor.witnessed(read, key_.der, (trusted,)) == log.time


def test_keys_that_are_too_small_are_refused() -> None:
    for key_ in (making.rsa.generate_private_key(65537, 1024), making.ec.generate_private_key(making.ec.SECP192R1())):
        with pytest.raises(FailedPrecondition, match="neither Ed25519, nor ECDSA"):
            publickeys.read(pem(key_), "it")


def altered(*path: str | int, to: Any = None) -> bytes:
    """The good bundle with one value changed, or left out."""
    found = json.loads(json.dumps(GOOD))
    at = found
    for step in path[:-1]:
        at = at[step]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        altered("mediaType"),
        altered("mediaType", to="application/vnd.dev.sigstore.bundle.v9.9+json"),
        altered("verificationMaterial"),
        altered("verificationMaterial", "publicKey"),
        altered("verificationMaterial", "certificate", to={"rawBytes": "AAAA"}),
        altered("verificationMaterial", "more", to=1),
        altered("dsseEnvelope"),
        altered("dsseEnvelope", "payload", to="!"),
        altered("dsseEnvelope", "signatures", to=[]),
        altered("dsseEnvelope", "signatures", to=GOOD["dsseEnvelope"]["signatures"] * 2),
        altered("messageSignature", to={"signature": "AAAA", "messageDigest": {"algorithm": "SHA2_256", "digest": ""}}),
        altered("verificationMaterial", "tlogEntries", 0, "logIndex", to="-1"),
        altered("verificationMaterial", "tlogEntries", to=[GOOD["verificationMaterial"]["tlogEntries"][0]] * 9),
        altered("unknown", to=1),
    ],
)
def test_what_is_no_bundle_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(Unverified, match="bundle 1"):
        bundles.parse(data, "bundle 1")


def test_a_byte_changed_in_payload_type_or_signature_is_noticed() -> None:
    trusted = Keys((publickeys.read(pem(P256), "key"),))
    trusted.verify(bundles.parse(json.dumps(GOOD).encode(), "it"), NOW)
    signature = base64.b64decode(GOOD["dsseEnvelope"]["signatures"][0]["sig"])
    for data in (
        altered("dsseEnvelope", "payload", to=making.b64(making.statement(OTHER))),
        altered("dsseEnvelope", "payloadType", to="application/vnd.in-toto+json;v=2"),
        altered("dsseEnvelope", "signatures", 0, "sig", to=making.b64(signature[:-1] + bytes([signature[-1] ^ 1]))),
        altered("dsseEnvelope", "signatures", 0, "sig", to=making.b64(b"\x00" * 64)),
    ):
        with pytest.raises(Unverified):
            trusted.verify(bundles.parse(data, "it"), NOW)


@pytest.mark.parametrize(
    ("kind", "predicate", "fault"),
    [
        (making.SLSA, making.PROVENANCE, ""),
        (making.SLSA, {"runDetails": {"builder": {"id": ""}}}, "has no runDetails.builder.id"),
        ("https://slsa.dev/provenance/v0.2", {"builder": {"id": "x"}}, ""),
        ("https://slsa.dev/provenance/v0.2", {"builder": "x"}, "has no builder.id"),
        ("https://spdx.dev/Document", {"spdxVersion": "SPDX-2.3"}, ""),
        ("https://spdx.dev/Document", {"name": "x"}, "has no spdxVersion"),
        ("https://spdx.dev/Document", "SPDXVersion: SPDX-2.3", ""),
        ("https://cyclonedx.org/bom", {"bomFormat": "CycloneDX"}, ""),
        ("https://cyclonedx.org/bom", {"bomFormat": "SPDX"}, "bomFormat"),
        ("https://example.com/mine", ["anything"], ""),
    ],
)
def test_predicates_that_are_known_have_to_be_what_they_say(kind: str, predicate: Any, fault: str) -> None:
    payload = making.statement(DIGEST, kind, predicate)
    if fault:
        with pytest.raises(Unverified, match=fault):
            statements.parse(making.IN_TOTO, payload, "it")
    else:
        assert statements.parse(making.IN_TOTO, payload, "it").predicate == predicate


@pytest.mark.parametrize(
    ("payload_type", "payload"),
    [
        ("text/plain", making.statement()),
        (making.IN_TOTO, b"no json"),
        (making.IN_TOTO, b"{}"),
        (making.IN_TOTO, making.statement().replace(b"Statement/v1", b"Statement/v7")),
        (making.IN_TOTO, b'{"_type": "https://in-toto.io/Statement/v1", "subject": [], "predicateType": "x"}'),
    ],
)
def test_what_is_no_statement_is_refused(payload_type: str, payload: bytes) -> None:
    with pytest.raises(Unverified, match="it holds"):
        statements.parse(payload_type, payload, "it")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_bundle_or_refused(data: bytes) -> None:
    with pytest.raises(Unverified):
        bundles.parse(data, "it")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _paths(value: Any, before: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [before] if before else []
    for key_, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        found += _paths(inner, (*before, key_))
    return found


@given(st.sampled_from(_paths(GOOD)), _JSON)
def test_a_bundle_with_any_value_replaced_says_nothing_else(path: tuple[str | int, ...], value: Any) -> None:
    """Whatever still verifies is over the payload that was signed, and a log's word is for the time that it gave."""
    verifier, log = publickeys.read(pem(P256), "key"), publickeys.read(pem(LOG.key), "log")
    data = altered(*path, to=value if value is not None else {})
    try:
        read = bundles.parse(data, "it")
        Keys((verifier,)).verify(read, NOW)
    except Unverified:
        return
    assert read.payload == making.statement()
    with contextlib.suppress(Unverified):
        assert rekor.witnessed(read, verifier.der, (log,)) == LOG.time


def test_envelopes_made_here_are_taken_by_securesystemslib_and_the_other_way_around() -> None:
    sslib = pytest.importorskip("securesystemslib.dsse")
    signers = pytest.importorskip("securesystemslib.signer")
    key_ = signers.SSlibKey.from_crypto(P256.public_key())
    sent = json.loads(bundle(P256))["dsseEnvelope"]
    sent["signatures"][0]["keyid"] = key_.keyid
    assert sslib.Envelope.from_dict(sent).verify([key_], 1)
    made = sslib.Envelope(making.statement(), making.IN_TOTO, {})
    made.sign(signers.CryptoSigner(P256, key_))
    (back,) = legacy.attestations(LegacyAttestation(json.dumps(made.to_dict()).encode()), "it")
    assert Keys((publickeys.read(pem(P256), "key"),)).verify(back, NOW).name
    assert back.payload == making.statement()


def _root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1."""
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\x01" + _root(leaves[:split]) + _root(leaves[split:])).digest()


def _path(leaves: list[bytes], index: int) -> list[bytes]:
    """RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < split:
        return [*_path(leaves[:split], index), _root(leaves[split:])]
    return [*_path(leaves[split:], index - split), _root(leaves[:split])]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33])
def test_inclusion_is_proved_as_rfc_6962_has_it(size: int) -> None:
    leaves = [b"%d" % number for number in range(size)]
    for index in range(size):
        path = tuple(_path(leaves, index))
        assert rekor.root_of(leaves[index], InclusionProof(index, size, path, "")) == _root(leaves)
        for wrong in (InclusionProof(index, size, (*path, b"\x00" * 32), ""), InclusionProof(size, size, path, "")):
            with pytest.raises(Unverified):
                rekor.root_of(leaves[index], wrong)
        if path:
            with pytest.raises(Unverified):
                rekor.root_of(leaves[index], InclusionProof(index, size, path[:-1], ""))
            swapped = InclusionProof(index ^ 1, max(size, (index ^ 1) + 1), path, "")
            assert _root_or_none(leaves[index], swapped) != _root(leaves)


def _root_or_none(leaf: bytes, proof: InclusionProof) -> bytes | None:
    try:
        return rekor.root_of(leaf, proof)
    except Unverified:
        return None
