"""``forge verify`` as it is used: by a key, by the node's policies, of a registry that has signatures or has not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.cli import main as cli
from hack.lab.signatures import BUNDLE, SLSA, Signer
from tests.unit.package.conftest import KEY, Make, make
from tests.unit.registry.registry_double import Contents, FakeRegistry
from tests.unit.registry.test_packages import serve

__all__ = ["make"]

Capture = pytest.CaptureFixture[str]
ALICE, BOB = Signer(), Signer()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry) -> Path:
    """A node's configuration of the test's own, and two keys in the directory to be in."""
    (tmp_path / "certs" / registry.host).mkdir(parents=True)
    (tmp_path / "certs" / registry.host / "hosts.toml").write_text(f'server = "{registry.url}"\n')
    (tmp_path / "alice.pub").write_bytes(ALICE.pem)
    (tmp_path / "bob.pub").write_bytes(BOB.pem)
    config = tmp_path / "config.toml"
    config.write_text(f'[registry]\nconfig_path = "{tmp_path}/certs"\nplatform = "linux/amd64"\n')
    monkeypatch.setenv("FORGEONE_CONFIG", str(config))
    monkeypatch.chdir(tmp_path)
    return config


@pytest.fixture
def signed(registry: FakeRegistry) -> str:
    """An image that Alice signed and attested the provenance of."""
    contents = registry.contents
    digest = str(contents.add_image("v1")["digest"])
    kinds = ("https://sigstore.dev/cosign/sign/v1", SLSA)
    entries = [
        contents.add_artifact(layers=[(BUNDLE, ALICE.bundle(digest, kind), {})], subject=digest, kind=BUNDLE)
        for kind in kinds
    ]
    contents.referrers = {digest: entries}
    return digest


def forge(*words: str) -> int:
    return cli.main(["verify", *words])


def by_policy(node: Path, registry: FakeRegistry, key: str, kind: str = "sigstoreSigned") -> None:
    rule = {"type": kind, "keyPath": str(node.parent / key), "signedIdentity": {"type": "matchRepository"}}
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {registry.host: [rule]}}}
    (node.parent / "policy.json").write_text(json.dumps(policy))
    with node.open("a") as file:
        file.write(f'[signatures]\npolicy = "{node.parent}/policy.json"\n')


def test_a_key_that_signed_is_named_with_what_it_attested(registry: FakeRegistry, signed: str, capsys: Capture) -> None:
    assert forge("--key", "bob.pub", "--key", "alice.pub", f"{registry.host}/app:v1") == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["image", f"{registry.host}/app:v1"],
        ["digest", signed],
        ["signed", f"by    {ALICE.id}"],
        ["attested", f"{SLSA} by {ALICE.id}"],
    ]


def test_another_key_is_not_enough(registry: FakeRegistry, signed: str, capsys: Capture) -> None:
    assert forge("--key", "bob.pub", f"{registry.host}/app:v1") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"forge: SignatureValidationFailed: {registry.host}/app:v1: refused by bob.pub")
    assert "none of the trusted keys" in error


def test_the_nodes_policies_count_where_no_key_is_given(
    node: Path, registry: FakeRegistry, signed: str, capsys: Capture
) -> None:
    by_policy(node, registry, "alice.pub")
    assert forge("-o", "json", f"{registry.host}/app:v1") == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": f"{registry.host}/app:v1",
        "digest": signed,
        "manifest": signed,
        "signers": [ALICE.id],
        "attestations": [{"predicateType": SLSA, "signer": ALICE.id}],
        "warnings": [],
        "found": {"bundles": 2, "simple": 0, "attestations": 0, "notation": 0},
        "problems": [],
    }


def test_a_policy_that_demands_another_refuses(
    node: Path, registry: FakeRegistry, signed: str, capsys: Capture
) -> None:
    by_policy(node, registry, "bob.pub")
    assert forge(f"{registry.host}/app:v1") == 1
    assert "SignatureValidationFailed" in capsys.readouterr().err


def test_a_package_has_to_be_signed_by_the_key_that_is_asked_for(
    node: Path, registry: FakeRegistry, make: Make, capsys: Capture
) -> None:
    (node.parent / "keys").mkdir(mode=0o755)
    for file in ("keys/it.pem", "signer.pub"):
        (node.parent / file).write_bytes(KEY.public.pem())
    with node.open("a") as file:
        file.write(f'[packages]\ntrusted_keys = "{node.parent}/keys"\n')
    serve(registry.contents, make())
    name = f"{registry.host}/logger:v1"
    assert forge("--key", "alice.pub", name) == 1
    assert "refused by alice.pub" in capsys.readouterr().err
    assert forge("--key", "alice.pub", "--key", "signer.pub", name) == 0
    assert f"signed by    key:{KEY.public.id}" in capsys.readouterr().out


def test_an_unsigned_image_is_told_as_such(registry: FakeRegistry, capsys: Capture) -> None:
    contents: Contents = registry.contents
    contents.add_image("v1")
    assert forge("--key", "alice.pub", f"{registry.host}/app:v1") == 1
    assert "it is not signed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "this node has no policy"),
        (("--key", "absent.pub"), "absent.pub: No such file"),
        (("--key", "config.toml"), "config.toml: not one public key in PEM form"),
    ],
)
def test_without_anything_to_verify_by_nothing_is_verified(
    registry: FakeRegistry, capsys: Capture, words: tuple[str, ...], text: str
) -> None:
    assert forge(*words, f"{registry.host}/app:v1") != 0
    assert text in capsys.readouterr().err
    assert registry.seen == []
