"""Entries of a transparency log that prove nothing, each refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785

from forgeone_shim.attestation import bundles, publickeys
from forgeone_shim.attestation.authorities import Keys
from forgeone_shim.attestation.signed import Unverified
from tests.unit.attestation import making
from tests.unit.attestation.making import NOW, P256, b64, bundle, pem

LOG = making.Log()
AUTHORITY = Keys((publickeys.read(pem(P256), "key"),), (publickeys.read(pem(LOG.key), "log"),))


def body(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of what the log has kept."""

    def changed(entry: dict[str, Any]) -> None:
        found = json.loads(making.base64.b64decode(entry["canonicalizedBody"]))
        change(found)
        data = rfc8785.dumps(found)
        entry.update(LOG.entry(data, "dsse", promised="inclusionPromise" in entry))

    return changed


def checkpoint(text: str) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry["inclusionProof"]["checkpoint"].update(envelope=text)


def part(of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = of["spec"]["signatures"][0]
    return found


@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (body(lambda of: of.update(kind="intoto")), "of no known kind"),
        (body(lambda of: of.update(kind=["dsse"])), "of no known kind"),
        (body(lambda of: of.pop("spec")), "of no known kind"),
        (body(lambda of: of.update(spec=[])), "of no known kind"),
        (body(lambda of: of["spec"]["signatures"].append(of["spec"]["signatures"][0])), "of no known kind"),
        (body(lambda of: of["spec"]["payloadHash"].update(value="00" * 32)), "about another signature"),
        (body(lambda of: part(of).update(signature=b64(b"other"))), "about another signature"),
        (body(lambda of: part(of).update(signature="!")), "no base64"),
        (body(lambda of: part(of).update(signature=1)), "of no known kind"),
        (body(lambda of: part(of).update(verifier=b64(pem(making.STRANGER)))), "about another signature"),
        (body(lambda of: part(of).update(verifier=b64(b"no key"))), "of no known kind"),
        (lambda entry: entry.update(canonicalizedBody=b64(b"[" * 50_000)), "of no known kind"),
    ],
)
def test_what_the_log_kept_is_about_this_signature(
    change: Callable[[dict[str, Any]], object], fault: str, promised: bool
) -> None:
    check(change, fault, promised=promised)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entry: entry.pop("inclusionProof"), "neither a signed timestamp nor a proof"),
        (lambda entry: entry["inclusionProof"].pop("checkpoint"), "neither a signed timestamp nor a proof"),
        (lambda entry: entry["inclusionProof"].update(logIndex="1"), "is of no entry"),
        (lambda entry: entry["inclusionProof"].update(hashes=[b64(bytes(32))]), "too long"),
        (lambda entry: entry["inclusionProof"].update(treeSize="2"), "not in the tree"),
        (checkpoint(""), "cannot be read"),
        (checkpoint("log.example\n1\n\n"), "cannot be read"),
        (checkpoint("log.example\none\nYQ==\n\n\u2014 log.example YQ==\n"), "cannot be read"),
        (checkpoint(f"log.example\n{'9' * 20}\nYQ==\n\n\u2014 log.example YQ==\n"), "cannot be read"),
        (checkpoint("log.example\n1\nYQ==\n\n"), "of no trusted log"),
        (checkpoint("log.example\n1\nYQ==\n\n\u2014 log.example YQ==\n"), "of no trusted log"),
        (checkpoint("log.example\n1\nYQ==\n\n\u2014 log.example !\n"), "no base64"),
        (lambda entry: entry.update(making.Log().entry(b"{}", "dsse", promised=False)), "of no known kind"),
    ],
)
def test_a_proof_is_of_a_tree_that_the_log_signed(change: Callable[[dict[str, Any]], object], fault: str) -> None:
    check(change, fault, promised=False)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entry: entry.update(integratedTime="1"), "of no trusted log"),
        (lambda entry: entry.update(logIndex="8"), "of no trusted log"),
        (lambda entry: entry.update(logIndex=str(2**60)), "out of range"),
        (lambda entry: entry.update(logId={"keyId": b64(bytes(32))}), "of no trusted log"),
        (lambda entry: entry["inclusionPromise"].update(signedEntryTimestamp=b64(b"x")), "of no trusted log"),
    ],
)
def test_a_promise_is_the_log_s(change: Callable[[dict[str, Any]], object], fault: str) -> None:
    check(change, fault, promised=True)


def check(change: Callable[[dict[str, Any]], object], fault: str, *, promised: bool) -> None:
    found: dict[str, Any] = json.loads(bundle(P256, log=LOG, promised=promised))
    assert AUTHORITY.verify(bundles.parse(json.dumps(found).encode(), "it"), NOW).name
    change(found["verificationMaterial"]["tlogEntries"][0])
    with pytest.raises(Unverified, match=f"it: .*{fault}"):
        AUTHORITY.verify(bundles.parse(json.dumps(found).encode(), "it"), NOW)
