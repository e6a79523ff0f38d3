"""Signed notes, with the vectors of golang.org/x/mod/sumdb/note (note_test.go, BSD-3-Clause)."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.audit import keys, note
from forgeone_shim.audit.note import BadNote, Verifier
from forgeone_shim.errors import FailedPrecondition, ForgeError

PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
SEED = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)


def peter() -> note.Signer:
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(SEED)[1:])
    return keys.signer("PeterNeumann", SigningKey(private))


def opened(text: str, *trusted: str) -> note.Note:
    return note.open_note(text.encode(), [Verifier.parse(one) for one in trusted], "it")


def test_a_key_reads_as_it_is_written() -> None:
    assert str(Verifier.parse(PETER)) == PETER
    assert str(peter().verifier) == PETER


def test_a_note_is_signed_as_go_signs_it() -> None:
    assert note.sign(TEXT, [peter()]).decode() == f"{TEXT}\n{PETER_LINE}"


def test_a_note_of_two_opens_with_either_key_or_both() -> None:
    both = f"{TEXT}\n{PETER_LINE}{ENOCH_LINE}"
    for trusted in ((PETER,), (ENOCH,), (PETER, ENOCH)):
        found = opened(both, *trusted)
        assert found.text == TEXT
        assert [str(one) for one in found.signers] == list(trusted)


def test_a_note_of_strangers_is_refused() -> None:
    for trusted in ((), (ENOCH,)):
        with pytest.raises(BadNote, match="no trusted key"):
            opened(f"{TEXT}\n{PETER_LINE}", *trusted)


def test_a_signature_that_is_not_its_keys_refuses_the_note_whoever_else_signed() -> None:
    bad = PETER_LINE[:60] + "ABCD" + PETER_LINE[60:]
    for lines in (bad, ENOCH_LINE + bad, ENOCH_LINE + PETER_LINE.replace("x08go/ZJ", "x08go/aJ")):
        with pytest.raises(BadNote, match="PeterNeumann"):
            opened(f"{TEXT}\n{lines}", PETER, ENOCH)


def test_signatures_in_the_name_of_a_strangers_id_are_passed_over() -> None:
    stranger = "— PeterNeumann " + base64.b64encode(b"abcd" + bytes(64)).decode() + "\n"
    assert opened(f"{TEXT}\n{stranger}{PETER_LINE}{PETER_LINE}", PETER).text == TEXT


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}\n{PETER_LINE[:-1]}",
        f"\x01{TEXT}\n{PETER_LINE}",
        f"{TEXT}\n" + PETER_LINE.replace("PeterNeumann", "Bad Name"),
        f"{TEXT}\n" + PETER_LINE.replace("PeterNeumann", "Bad+Name"),
        f"{TEXT}\n" + PETER_LINE.replace("— ", "- "),
        f"{TEXT}\n{PETER_LINE}Unexpected line.\n",
        f"{TEXT}\n{PETER_LINE * 101}",
        "",
        "\n\n",
    ],
)
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition):
        opened(text, PETER)
    with pytest.raises(FailedPrecondition):
        note.open_note(b"\xff" + text.encode(), [Verifier.parse(PETER)], "it")


def test_a_mangled_key_is_refused() -> None:
    mangled = {PETER[low:high] for low in range(len(PETER)) for high in range(low + 1, len(PETER) + 1)} - {PETER}
    mangled |= {PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :] for at in range(len(PETER))}
    # Of another length, and of another algorithm, both with an id that fits.
    mangled |= {
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    }
    for one in mangled:
        with pytest.raises(FailedPrecondition):
            Verifier.parse(one)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb"])
def test_a_key_has_a_name_without_blanks(name: str) -> None:
    with pytest.raises(FailedPrecondition):
        Verifier(name, bytes(32))


@given(st.text(max_size=200))
def test_whatever_is_read_is_a_note_or_an_error(text: str) -> None:
    for candidate in (text, f"{text}\n\n{PETER_LINE}", f"{TEXT}\n{text}\n"):
        try:
            assert opened(candidate, PETER).text == TEXT
        except ForgeError:
            continue


@given(st.text(st.characters(min_codepoint=32, exclude_categories=("Cs",)), max_size=100))
def test_what_was_signed_is_what_is_read(text: str) -> None:
    assert opened(note.sign(text + "\n", [peter()]).decode(), PETER).text == text + "\n"
