"""Envelopes and keys: what verifies, and everything that does not."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.attestation import dsse, keys
from forgeone_shim.attestation.dsse import Envelope, Signature
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.errors import AlreadyExists, FailedPrecondition, ForgeError, NotFound

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
P256 = SigningKey(ec.generate_private_key(ec.SECP256R1()))


def test_what_is_signed_is_encoded_as_the_protocol_s_test_vector_has_it() -> None:
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize("key", [KEY, P256], ids=["ed25519", "p256"])
def test_an_envelope_is_verified_by_the_key_that_signed_it_alone(key: SigningKey) -> None:
    signed = dsse.sign(Envelope("text", b"body"), key)
    read = dsse.parse(dsse.encode(signed), "it")
    assert read == signed
    assert dsse.signers(read, [OTHER.public, key.public], "it") == (key.public,)
    assert dsse.signers(read, [OTHER.public], "it") == ()


def test_a_key_without_a_hint_is_found_among_the_trusted_ones() -> None:
    signed = dsse.sign(Envelope("text", b"body"), KEY)
    nameless = replace(signed, signatures=(replace(signed.signatures[0], key_id=""),))
    assert dsse.signers(nameless, [OTHER.public, KEY.public], "it") == (KEY.public,)


@pytest.mark.parametrize("part", ["payload", "payload_type"])
def test_a_trusted_key_s_signature_over_something_else_is_refused(part: str) -> None:
    signed = dsse.sign(Envelope("text", b"body"), KEY)
    changed = replace(signed, payload=b"other") if part == "payload" else replace(signed, payload_type="html")
    with pytest.raises(dsse.BadSignature, match="not over what it holds"):
        dsse.signers(changed, [KEY.public], "it")
    assert dsse.signers(changed, [OTHER.public], "it") == ()


def test_signing_again_replaces_the_same_key_s_signature_and_keeps_the_others() -> None:
    signed = dsse.sign(dsse.sign(dsse.sign(Envelope("text", b"body"), KEY), OTHER), KEY)
    assert [each.key_id for each in signed.signatures] == [OTHER.public.id, KEY.public.id]


def test_the_base64_alphabet_for_urls_is_read_too() -> None:
    signed = dsse.sign(Envelope("text", b"\xfb\xff" * 8), KEY)
    document = json.loads(dsse.encode(signed))
    document["payload"] = base64.urlsafe_b64encode(signed.payload).decode()
    assert dsse.parse(json.dumps(document).encode(), "it") == signed


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"payload": "", "payloadType": "x", "signatures": []}',
        b'{"payload": "!", "payloadType": "x", "signatures": [{"sig": ""}]}',
        b'{"payload": "", "payloadType": "", "signatures": [{"sig": ""}]}',
        b'{"payload": "", "signatures": [{"sig": ""}]}',
        b'{"payload": "", "payloadType": "x", "signatures": [{"sig": 1}]}',
        b"[" * 100_000,
        b" " * (dsse.MAX_ENVELOPE + 1),
    ],
)
def test_what_is_no_envelope_is_refused(text: bytes) -> None:
    with pytest.raises(FailedPrecondition, match="the envelope"):
        dsse.parse(text, "the envelope")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_a_clear_error(data: bytes) -> None:
    try:
        found = dsse.parse(data, "it")
    except FailedPrecondition:
        return
    assert dsse.signers(found, [KEY.public], "it") == ()


@given(st.text(max_size=40), st.binary(max_size=200), st.lists(st.binary(max_size=80), min_size=1, max_size=4))
def test_an_envelope_is_read_as_it_was_written(kind: str, payload: bytes, values: list[bytes]) -> None:
    made = Envelope(kind or "x", payload, tuple(Signature("k", value) for value in values))
    assert dsse.parse(dsse.encode(made), "it") == made


def test_a_private_key_is_its_owner_s_alone_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "it.key"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.read_signing_key(path).public == KEY.public
    with pytest.raises(AlreadyExists):
        OTHER.save(path)
    path.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        keys.read_signing_key(path)
    assert b"PRIVATE" not in repr(KEY).encode() + str(KEY).encode()


def test_the_trusted_keys_are_a_directory_s(tmp_path: Path) -> None:
    assert keys.read_trusted(tmp_path / "none") == ()
    (tmp_path / "b.pem").write_bytes(KEY.public.pem())
    (tmp_path / "a.pub").write_bytes(P256.public.pem())
    (tmp_path / "README").write_text("not a key")
    found = keys.read_trusted(tmp_path)
    assert [key.name for key in found] == ["a.pub", "b.pem"]
    assert found == (P256.public, KEY.public)


def pem(key: object) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a public key"),
        (KEY.public.pem()[:60], "not a public key"),
        (pem(rsa.generate_private_key(65537, 2048).public_key()), "neither Ed25519"),
        (pem(ec.generate_private_key(ec.SECP384R1()).public_key()), "neither Ed25519"),
        (b"-----BEGIN PRIVATE KEY-----", "holds a private key"),
        (b"x" * (keys.MAX_FILE + 1), "larger"),
    ],
)
def test_one_file_that_is_no_key_makes_nobody_trusted(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "good.pem").write_bytes(KEY.public.pem())
    (tmp_path / "odd.pem").write_bytes(content)
    with pytest.raises(ForgeError, match=why):
        keys.read_trusted(tmp_path)


def test_keys_that_others_could_have_put_there_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "it.pem"
    file.write_bytes(KEY.public.pem())
    file.chmod(0o666)
    with pytest.raises(FailedPrecondition, match="chmod go-w"):
        keys.read_trusted(tmp_path)
    file.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(FailedPrecondition, match="can be written by everybody"):
        keys.read_trusted(tmp_path)


def test_a_link_to_where_others_could_put_another_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    (tmp_path / "open").mkdir()
    (tmp_path / "open/it.pem").write_bytes(KEY.public.pem())
    (tmp_path / "keys/it.pem").symlink_to(tmp_path / "open/it.pem")
    assert keys.read_trusted(tmp_path / "keys") == (KEY.public,)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="open can be written by everybody"):
        keys.read_trusted(tmp_path / "keys")


def test_what_is_no_file_is_no_key_and_waited_for_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "it.pem")
    with pytest.raises(FailedPrecondition, match="is no file"):
        keys.read_trusted(tmp_path)


def test_keys_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "it.pem"
    file.write_bytes(KEY.public.pem())
    if file.stat().st_uid == 0:
        os.chown(file, 1234, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(FailedPrecondition, match="belongs to user"):
        keys.read_trusted(tmp_path)


def test_a_key_with_a_password_or_none_at_all_is_said_to_be_so(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    private = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    locked.chmod(0o600)
    with pytest.raises(FailedPrecondition, match="password"):
        keys.read_signing_key(locked)
    with pytest.raises(NotFound):
        keys.read_signing_key(tmp_path / "absent")
