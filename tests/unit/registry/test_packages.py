"""Packages pulled by a node: verified before a layer is asked for, and nothing left of one that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from cri.server import CODES
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.config.model import PackagesConfig
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import FailedPrecondition, ForgeError, PermissionDenied, UntrustedImage
from forgeone_shim.package.file import PackageFile
from forgeone_shim.package.manifest import Limits, Run
from forgeone_shim.registry.manifest import OCI_MANIFEST
from tests.unit.package.conftest import KEY, OTHER, SBOM, Make, make

from .conftest import Node
from .registry_double import Contents, FakeRegistry, sha256

__all__ = ["make"]


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir(mode=0o755)
    (tmp_path / "keys" / "it.pem").write_bytes(KEY.public.pem())
    return tmp_path / "keys"


@pytest.fixture
def node(node: Node, trusted: Path) -> Node:
    node.images.reconfigure(node.config, [], PackagesConfig(trusted_keys=str(trusted)))
    return node


def serve(contents: Contents, path: Path, tag: str = "v1") -> str:
    with PackageFile(path) as package:
        for blob in package.blobs():
            data = bytearray(blob.size)
            blob.open().readinto(memoryview(data))
            contents.blobs[blob.digest] = bytes(data)
        for name in (package.manifest_digest, tag):
            contents.manifests[name] = (OCI_MANIFEST, package.manifest_data)
        return package.manifest_digest


def refused(node: Node, registry: FakeRegistry, kind: type[ForgeError], text: str) -> None:
    with pytest.raises(kind, match=text):
        node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    assert node.left_over() == []
    assert node.images.list() == []


def test_a_signed_package_is_an_image_with_its_module_over_its_assets(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make
) -> None:
    path = make(run=Run(args=("-v",), env={"B": "2", "A": "1"}), limits=Limits(memory=64 << 20, cpu=500))
    digest = serve(contents, path)
    image = node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    assert (image.id, image.module, image.is_wasm) == (digest, "/module.wasm", True)
    assert (image.config.entrypoint, image.config.cmd, image.config.env) == (("logger",), ("-v",), ("A=1", "B=2"))
    assert image.repo_digests == (f"{registry.host}/logger@{digest}",)
    assert dict(image.annotations) == {
        "forgeone.dev/package": "acme/logger:1.2.0",
        "forgeone.dev/package-signers": KEY.public.id,
        "forgeone.dev/package-memory": str(64 << 20),
        "forgeone.dev/package-cpu": "500",
    }
    assets, module = (node.layers.path(layer) for layer in image.layers)
    assert (assets / "sub/hello.txt").read_text() == "hello"
    assert (module / "module.wasm").read_bytes()[:4] == b"\0asm"
    node.images.remove(image.id)
    assert node.left_over() == []


def test_what_only_a_blob_is_is_kept(node: Node, registry: FakeRegistry, contents: Contents, make: Make) -> None:
    serve(contents, make())
    image = node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    assert node.images.document(sha256(SBOM)) == SBOM
    kept = [path.name for path in (node.root / "blobs").rglob("*") if path.is_file()]
    assert kept == [image.layers[0].partition(":")[2]]


def test_a_refusal_is_told_so_that_a_kubelet_knows_it(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make
) -> None:
    serve(contents, make(key=None))
    with pytest.raises(UntrustedImage) as refused:
        node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    # k8s.io/cri-api/pkg/errors: the word is looked for at the beginning, and with this code alone.
    assert str(refused.value).startswith("SignatureValidationFailed: ")
    assert CODES[refused.value.kind] is grpc.StatusCode.UNKNOWN


def test_no_layer_of_a_package_that_is_refused_is_asked_for(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make
) -> None:
    path = make(key=OTHER)
    serve(contents, path)
    refused(node, registry, PermissionDenied, "^SignatureValidationFailed: .* none of the 1 trusted keys")
    with PackageFile(path) as package:
        layers = [layer.digest for layer in package.parts.layers]
    assert [registry.paths(layer) for layer in layers] == [[], [], []]


@pytest.mark.parametrize("signed", [True, False])
def test_without_any_key_no_package_is_taken(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make, signed: bool
) -> None:
    node.images.reconfigure(node.config, [], PackagesConfig(trusted_keys="/nonexistent"))
    serve(contents, make(key=KEY if signed else None))
    refused(node, registry, PermissionDenied, "SignatureValidationFailed")


def test_unsigned_packages_are_taken_where_the_configuration_says_so(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make, trusted: Path
) -> None:
    node.images.reconfigure(node.config, [], PackagesConfig(trusted_keys=str(trusted), unsigned="allow"))
    serve(contents, make(key=None))
    image = node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    assert "forgeone.dev/package-signers" not in image.annotations


def test_a_key_counts_from_the_moment_it_is_there(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make, trusted: Path
) -> None:
    new = SigningKey.generate()
    serve(contents, make(key=new))
    refused(node, registry, PermissionDenied, "none of the 1 trusted keys")
    (trusted / "new.pub").write_bytes(new.public.pem())
    assert node.images.pull(f"{registry.host}/logger:v1", None, NEVER).annotations
    (trusted / "broken.pub").write_bytes(b"broken")
    with pytest.raises(FailedPrecondition, match=r"broken\.pub"):
        node.images.pull(f"{registry.host}/logger:v1", None, NEVER)


def test_a_layer_that_is_not_what_was_signed_never_becomes_one(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make
) -> None:
    path = make()
    serve(contents, path)
    with PackageFile(path) as package:
        module = package.parts.layers[0]
    contents.blobs[module.digest] = b"\0asm" + bytes(module.size - 4)
    refused(node, registry, FailedPrecondition, "have another digest")


def test_a_package_for_another_host_interface_is_refused(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make
) -> None:
    serve(contents, make(host_abi="999.0"))
    refused(node, registry, FailedPrecondition, r"needs version 999\.0 of the host interface")


def test_an_image_that_is_no_package_cannot_say_it_is_a_signed_one(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1")
    document = json.loads(contents.manifests["v1"][1])
    document["annotations"] = {"forgeone.dev/package-signers": KEY.public.id, "org.example/note": "kept"}
    contents.manifests["v1"] = (OCI_MANIFEST, json.dumps(document).encode())
    image = node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    assert dict(image.annotations) == {"org.example/note": "kept"}


def test_notes_that_nobody_signed_do_not_reach_the_image(
    node: Node, registry: FakeRegistry, contents: Contents, make: Make
) -> None:
    serve(contents, make())
    document = json.loads(contents.manifests["v1"][1])
    document["annotations"] = {"run.oci.handler": "x", "forgeone.dev/package-signers": "sha256:forged"}
    document["layers"][0]["annotations"] = {"org.opencontainers.image.title": "../../etc/passwd"}
    contents.manifests["v1"] = (OCI_MANIFEST, json.dumps(document).encode())
    image = node.images.pull(f"{registry.host}/logger:v1", None, NEVER)
    assert "run.oci.handler" not in image.annotations
    assert image.annotations["forgeone.dev/package-signers"] == KEY.public.id
    assert image.module == "/module.wasm"
