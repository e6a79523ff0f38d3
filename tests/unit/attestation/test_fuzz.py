"""Whatever a registry serves or a file holds: it is taken, or refused in the way that callers know."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgeone_shim.attestation import (
    bundles,
    certificates,
    containers_policy,
    image_policies,
    legacy,
    notation,
    notation_policy,
    publickeys,
    statements,
)
from forgeone_shim.attestation.authorities import PrivateCa
from forgeone_shim.attestation.evidence import LegacyAttestation, SimpleSignature
from forgeone_shim.attestation.identity import Match, SignedIdentity
from forgeone_shim.attestation.keyless import Keyless, TrustedRoot
from forgeone_shim.attestation.policyfiles import Files
from forgeone_shim.attestation.signed import Unverified
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.registry.reference import Reference
from tests.unit.attestation import making
from tests.unit.attestation.making import NOW, P256, fixture, pem

_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
_ROOT = TrustedRoot.parse(fixture("sigstore-conformance/production-root.json"), "root")
CA = making.Ca()
POLICY = {
    "default": [{"type": "sigstoreSigned", "keyData": making.b64(pem(P256)), "signedIdentity": {"type": "matchExact"}}],
    "transports": {
        "docker": {
            "a.example": [{"type": "reject"}],
            "b.example": [
                {
                    "type": "sigstoreSigned",
                    "pki": {"caRootsData": making.b64(CA.pem), "subjectEmail": "a@b"},
                }
            ],
        }
    },
}
IMAGE_POLICY = {
    "apiVersion": "policy.sigstore.dev/v1beta1",
    "kind": "ClusterImagePolicy",
    "metadata": {"name": "mine"},
    "spec": {
        "images": [{"glob": "**"}],
        "authorities": [
            {"key": {"data": pem(P256).decode()}, "attestations": [{"name": "x", "predicateType": "spdx"}]},
            {
                "keyless": {"identities": [{"issuer": "x", "subjectRegExp": "y"}]},
                "ctlog": {"url": "https://rekor.sigstore.dev"},
            },
        ],
    },
}
TRUST_POLICY = {
    "version": "1.0",
    "trustPolicies": [
        {
            "name": "x",
            "registryScopes": ["a.example/b"],
            "signatureVerification": {"level": "strict", "override": {"expiry": "log"}},
            "trustStores": ["ca:mine"],
            "trustedIdentities": ["x509.subject: C=a, ST=b, O=c"],
        }
    ],
}


def places(value: Any, before: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [before] if before else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += places(inner, (*before, key))
    return found


def with_one_changed(draw: st.DrawFn, of: Any) -> Any:
    changed = json.loads(json.dumps(of))
    path = draw(st.sampled_from(places(changed)))
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = draw(_JSON)
    return changed


@pytest.mark.parametrize(
    ("good", "read"),
    [
        (POLICY, containers_policy.read),
        (IMAGE_POLICY, lambda path, files: image_policies.read(path, files, lambda _: _ROOT)),
        (TRUST_POLICY, lambda path, files: notation_policy.read(path, path.parent, files)),
    ],
    ids=["containers-policy", "image-policy", "trust-policy"],
)
@given(data=st.data())
@_QUICK
def test_a_policy_with_any_value_replaced_is_read_or_refused(
    tmp_path: Path, good: Any, read: Callable[[Path, Files], object], data: st.DataObject
) -> None:
    (tmp_path / "ca/mine").mkdir(parents=True, exist_ok=True)
    (tmp_path / "ca/mine/root.pem").write_bytes(CA.pem)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(good))
    read(path, Files())
    path.write_text(json.dumps(with_one_changed(data.draw, good) if data.draw(st.booleans()) else data.draw(_JSON)))
    with contextlib.suppress(InvalidInput, FailedPrecondition):
        read(path, Files())


@given(st.binary(max_size=120), st.text(max_size=40), st.text(max_size=40))
@_QUICK
def test_layers_of_cosign_are_read_or_refused(payload: bytes, first: str, second: str) -> None:
    with contextlib.suppress(Unverified):
        legacy.signature(SimpleSignature(payload, first, second, first, second), "it")
    with contextlib.suppress(Unverified):
        legacy.attestations(LegacyAttestation(payload, first, second, first), "it")
    for read in (
        lambda: legacy.claim(payload, "it"),
        lambda: statements.parse(making.IN_TOTO, payload, "it"),
        lambda: notation.read(payload, "it"),
    ):
        with pytest.raises(Unverified):
            read()


@given(st.data())
@_QUICK
def test_a_certificate_with_any_byte_changed_proves_the_same_or_nothing(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(LEAF) - 1))
    der = LEAF[:place] + bytes([data.draw(st.integers(0, 255))]) + LEAF[place + 1 :]
    material = {"certificate": {"rawBytes": making.b64(der)}}
    this = bundles.parse(json.dumps({**SIGNED, "verificationMaterial": material}).encode(), "it")
    with contextlib.suppress(Unverified):
        certificates.names(certificates.load([der], "it")[0], "it")
    try:
        signer = PrivateCa((CA.certificate,), email="a@example.com").verify(this, NOW)
    except Unverified:
        return
    assert signer.name == "x509:a@example.com"
    assert der == LEAF


@given(st.data())
@settings(parent=_QUICK, max_examples=25)
def test_a_bundle_without_keys_with_any_value_replaced_is_refused_or_the_same(data: st.DataObject) -> None:
    pytest.importorskip("sigstore")
    good = json.loads(fixture("sigstore-conformance/keyless-dsse.json"))
    changed = json.dumps(with_one_changed(data.draw, good)).encode()
    try:
        read = bundles.parse(changed, "it")
        Keyless(_ROOT, ()).verify(read, NOW)
    except Unverified:
        return
    raise AssertionError("nobody is trusted")


@given(st.binary(max_size=300) | st.binary(max_size=120).map(lambda inner: b"-----BEGIN PUBLIC KEY-----\n" + inner))
@_QUICK
def test_a_key_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(FailedPrecondition):
        publickeys.read(data, "it")
    with pytest.raises(FailedPrecondition):
        certificates.load_pem(data, "it")


@given(st.text(max_size=60), st.sampled_from(Match), st.text(max_size=20))
@_QUICK
def test_no_name_but_the_right_one_fits(said: str, match: Match, prefix: str) -> None:
    asked = Reference.parse("registry.example/team/app:v1")
    rule = SignedIdentity(match, "registry.example/team/app:v1", prefix or "x", "registry.example")
    try:
        rule.check(asked, said, "it")
    except Unverified:
        return
    assert match is Match.ANY or (match is Match.REPOSITORY and not said) or "registry.example/team/app" in said


CHAIN = CA.signer(making.x509.SubjectAlternativeName([making.x509.RFC822Name("a@example.com")]))
LEAF = certificates.der(CHAIN[0])
SIGNED = json.loads(making.bundle(P256, chain=CHAIN[:1]))
