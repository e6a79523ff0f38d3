"""Receipts, and proofs that the log only grew."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.audit import checkpoint, note
from forgeone_shim.audit.checkpoint import Checkpoint
from forgeone_shim.audit.note import BadNote
from forgeone_shim.audit.proof import BadProof, Growth, Receipt
from forgeone_shim.errors import FailedPrecondition, ForgeError, NotFound
from tests.unit.audit.logs import Node
from tests.unit.audit.test_note import peter


@pytest.mark.parametrize("index", [0, 3, 255, 256, 299, 300])
def test_a_receipt_shows_its_entry_and_no_other(node: Node, index: int) -> None:
    log = node.start()
    node.write(299, together=True)
    node.close()
    node.start()
    node.write(1)
    found = node.read()
    receipt = Receipt.parse(Receipt.of(found, index).encode())
    assert receipt.extra == found.entry(index)
    signed = receipt.verify(found.entry(index), node.verifiers(log.origin))
    assert signed.checkpoint.size == found.size
    with pytest.raises(BadProof):
        receipt.verify(found.entry(index) + b" ", node.verifiers(log.origin))
    with pytest.raises(BadProof):
        Receipt(index + 1, receipt.hashes, receipt.note).verify(found.entry(index), node.verifiers(log.origin))
    with pytest.raises(BadNote):
        receipt.verify(found.entry(index), [peter().verifier])


def test_there_is_no_receipt_for_what_is_not_there(node: Node) -> None:
    node.start()
    node.write(3)
    with pytest.raises(NotFound, match="a log of 4 entries"):
        Receipt.of(node.read(), 4)


@pytest.mark.parametrize("old", [0, 1, 4, 255, 256, 301])
def test_a_proof_shows_that_the_log_only_grew(node: Node, old: int) -> None:
    log = node.start()
    node.write(300, together=True)
    found = node.read()
    signer = log._signer
    earlier = checkpoint.Signed(Checkpoint(log.origin, old, found.root(old)), b"", (signer.verifier,))
    proof = Growth.parse(Growth.of(found, old).encode())
    assert proof.verify(earlier, node.verifiers(log.origin)).checkpoint.size == 301
    for other in (
        Checkpoint(log.origin, old, bytes(32)),
        Checkpoint(log.origin, old + 1, found.root(old)),
        Checkpoint("other", old, found.root(old)),
    ):
        with pytest.raises(BadProof):
            proof.verify(checkpoint.Signed(other, b"", ()), node.verifiers(log.origin))


def test_what_the_log_never_had_cannot_be_shown(node: Node) -> None:
    node.start()
    node.write(3)
    with pytest.raises(FailedPrecondition, match="it never had 5"):
        Growth.of(node.read(), 5)


def test_a_proof_reads_as_the_specification_writes_it() -> None:
    # The example of https://c2sp.org/tlog-proof, with a checkpoint of ours.
    hashes = (
        "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=",
        "B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=",
        "EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=",
    )
    signed = Checkpoint("example.com/fancylog", 109482, bytes(32)).sign([peter()])
    text = "c2sp.org/tlog-proof@v1\nextra YQ==\nindex 73894\n" + "\n".join(hashes) + "\n\n" + signed.decode()
    found = Receipt.parse(text.encode())
    assert (found.index, found.extra, found.note) == (73894, b"a", signed)
    assert [base64.b64encode(one).decode() for one in found.hashes] == list(hashes)
    assert found.encode() == text.encode()


_GOOD = "c2sp.org/tlog-proof@v1\nindex 3\n" + base64.b64encode(bytes(32)).decode() + "\n\nnote"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c2sp.org/tlog-proof@v1",
        _GOOD.replace("@v1", "@v2"),
        _GOOD.replace("index 3", "index 03"),
        _GOOD.replace("index 3", "index -3"),
        _GOOD.replace("index 3", "index " + "9" * 30),
        _GOOD.replace("index 3", "extra !\nindex 3"),
        _GOOD.replace("index 3\n", ""),
        _GOOD.replace("AAA=", "AA=="),
        _GOOD.replace("AAA=", "AAB="),
        _GOOD.replace("index 3\n", "index 3\n" + (base64.b64encode(bytes(32)).decode() + "\n") * 64),
        _GOOD.replace("\n\n", "\n"),
        _GOOD + "x" * 300_000,
        _GOOD.replace("index", "indéx"),
    ],
)
def test_what_is_no_receipt_is_refused(text: str) -> None:
    assert Receipt.parse(_GOOD.encode()).index == 3
    with pytest.raises(FailedPrecondition):
        Receipt.parse(text.encode())


@pytest.mark.parametrize("text", ["", "old\n\n", "old x\n\n", "old 1\nx\n\nnote", "new 1\n\nnote", "old 01\n\nnote"])
def test_what_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition):
        Growth.parse(text.encode())


@given(st.text(max_size=120), st.binary(max_size=120))
def test_whatever_is_read_is_a_proof_or_an_error(text: str, data: bytes) -> None:
    for candidate in (text.encode("utf-8", "replace"), data, _GOOD.encode() + data, data + _GOOD.encode()):
        for kind in (Receipt, Growth):
            try:
                kind.parse(candidate)
            except ForgeError:
                continue


CHECKPOINT = "example.com/log\n7\n" + base64.b64encode(bytes(32)).decode() + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n7\nx\n",
        CHECKPOINT.replace("\n7", "\n07"),
        CHECKPOINT.replace("\n7", "\n-7"),
        CHECKPOINT.replace("\n7", "\n7 "),
        CHECKPOINT.replace("\n7", "\n٧"),
        CHECKPOINT.replace("\n7", "\n" + str(2**63)),
        CHECKPOINT.replace("AAA=", "AAA"),
        CHECKPOINT + "\nmore\n",
        CHECKPOINT[:-1],
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition):
        checkpoint.parse(text, "it")


def test_extension_lines_are_passed_over() -> None:
    assert checkpoint.parse(CHECKPOINT + "more\n", "it") == checkpoint.parse(CHECKPOINT, "it")
    assert str(checkpoint.parse(CHECKPOINT, "it")) == CHECKPOINT


def test_a_checkpoint_in_anothers_name_is_refused() -> None:
    signed = note.sign(CHECKPOINT, [peter()])
    with pytest.raises(BadNote, match="in the name of example"):
        checkpoint.open_signed(signed, [peter().verifier], "it")
