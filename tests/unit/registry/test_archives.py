"""Images as files: exported whole, imported as if they had been pulled, and refused where something is missing."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgeone_shim.config.model import PackagesConfig
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, NotFound, PermissionDenied
from forgeone_shim.registry.artifacts import TITLE
from forgeone_shim.registry.layout import Archive
from forgeone_shim.registry.model import Image
from tests.unit.package.conftest import KEY, Make, make

from . import test_modules as modules
from .conftest import Node
from .registry_double import OCI_CONFIG, Contents, FakeRegistry, sha256, tar_of
from .test_artifacts import artifact, descriptor
from .test_modules import CNCF, both
from .test_packages import serve

__all__ = ["both", "make"]

Nodes = Callable[..., Node]


def export(node: Node, path: Path, *names: str) -> Path:
    with path.open("wb") as file:
        for piece in node.images.export(names):
            file.write(piece)
    return path


def load(node: Node, path: Path, name: str = "") -> Sequence[Image]:
    with path.open("rb") as file:
        return node.images.load(Archive(cast(BinaryIO, file), path.name), NEVER, name)


def index(path: Path) -> list[dict[str, Any]]:
    with tarfile.open(path) as tar:
        return cast(list[dict[str, Any]], json.load(tar.extractfile("index.json"))["manifests"])  # type: ignore[arg-type]


def keeping(make_node: Nodes, *registries: FakeRegistry) -> Node:
    node = make_node(keep_blobs=True)
    node.plain(*registries)
    return node


def without_blobs(image: Image) -> Image:
    return replace(image, blobs=tuple(sorted(image.blobs)))


@pytest.mark.parametrize("packed", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("docker", [False, True])
def test_an_imported_image_is_the_one_that_was_pulled(
    make_node: Nodes, registry: FakeRegistry, contents: Contents, tmp_path: Path, packed: str, docker: bool
) -> None:
    tars = [tar_of({"a": b"1"}), tar_of({"b": b"2"})]
    contents.add_image("v1", layers=tars, packed=packed, docker=docker, config={"Cmd": ["x"]})
    one, two = keeping(make_node, registry), make_node(keep_blobs=True)
    name = f"{registry.host}/app:v1"
    pulled = one.images.pull(name, None, NEVER)
    (imported,) = load(two, export(one, tmp_path / "it.tar", name))
    assert imported == pulled
    assert (two.layers.path(imported.layers[1]) / "b").read_bytes() == b"2"
    # It can be handed on.
    assert export(two, tmp_path / "again.tar", name).read_bytes() == (tmp_path / "it.tar").read_bytes()


def test_an_image_of_an_index_keeps_the_index_s_digest(
    make_node: Nodes, registry: FakeRegistry, contents: Contents, tmp_path: Path
) -> None:
    other, mine = contents.add_image(architecture="arm64", layers=[tar_of({"arm": b""})]), contents.add_image()
    entries = [
        other | {"platform": {"os": "linux", "architecture": "arm64"}},
        mine | {"platform": {"os": "linux", "architecture": "amd64"}},
    ]
    made = contents.add_index("v1", entries=entries)
    one, two = keeping(make_node, registry), make_node()
    name = f"{registry.host}/app:v1"
    pulled = one.images.pull(name, None, NEVER)
    (imported,) = load(two, export(one, tmp_path / "it.tar", name))
    assert imported.repo_digests == (f"{registry.host}/app@{made['digest']}",) == pulled.repo_digests
    assert (imported.id, imported.repo_tags) == (pulled.id, pulled.repo_tags)
    assert [entry["digest"] for entry in index(tmp_path / "it.tar")] == [made["digest"]]


def test_by_its_id_an_image_is_exported_with_all_its_names(
    make_node: Nodes, registry: FakeRegistry, contents: Contents, tmp_path: Path
) -> None:
    made = contents.add_image("v1")
    contents.manifests["v2"] = contents.manifests["v1"]
    one, two = keeping(make_node, registry), make_node(keep_blobs=True)
    base = f"{registry.host}/app"
    for name in (f"{base}:v1", f"{base}:v2", f"{registry.host}/other@{made['digest']}"):
        pulled = one.images.pull(name, None, NEVER)
    assert load(two, export(one, tmp_path / "all.tar", pulled.id))[-1] == pulled
    three = make_node()
    (only,) = load(three, export(one, tmp_path / "one.tar", f"{base}:v2"))
    assert (only.repo_tags, only.repo_digests) == ((f"{base}:v2",), (f"{base}@{made['digest']}",))


def test_several_images_go_into_one_file(
    make_node: Nodes, registry: FakeRegistry, contents: Contents, tmp_path: Path
) -> None:
    shared = tar_of({"base": b"base"})
    contents.add_image("a", layers=[shared])
    contents.add_image("b", layers=[shared, tar_of({"top": b""})])
    one, two = keeping(make_node, registry), make_node()
    names = [f"{registry.host}/app:{tag}" for tag in "ab"]
    for name in names:
        one.images.pull(name, None, NEVER)
    load(two, export(one, tmp_path / "both.tar", *names, names[0]))
    assert sorted(tag for image in two.images.list() for tag in image.repo_tags) == names


def test_an_image_whose_blobs_are_not_kept_says_how_to_get_them(
    node: Node, registry: FakeRegistry, contents: Contents, tmp_path: Path
) -> None:
    contents.add_image("v1")
    name = f"{registry.host}/app:v1"
    node.images.pull(name, None, NEVER)
    with pytest.raises(FailedPrecondition, match=r"not kept on this node \(set registry.keep_blobs, forge reload"):
        export(node, tmp_path / "it.tar", name)
    assert (tmp_path / "it.tar").read_bytes() == b""
    # And that is what helps.
    node.images.reconfigure(replace(node.config, keep_blobs=True), [])
    node.images.pull(name, None, NEVER)
    export(node, tmp_path / "it.tar", name)
    node.images.remove(name)
    assert node.left_over() == []


def test_what_an_export_needs_is_not_collected_meanwhile(
    make_node: Nodes, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1")
    node = keeping(make_node, registry)
    name = f"{registry.host}/app:v1"
    node.images.pull(name, None, NEVER)
    running = node.images.export([name])
    pieces = [next(running)]
    node.images.remove(name)
    pieces += running
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert len(tar.getnames()) == 5
    assert node.left_over() == []


def test_files_of_artifacts_need_no_kept_blobs(
    node: Node, registry: FakeRegistry, contents: Contents, make_node: Nodes, tmp_path: Path
) -> None:
    artifact(
        contents,
        "v1",
        descriptor(contents, b"weights" * 1000, **{TITLE: "model.bin"}),
        descriptor(contents, b"words", **{TITLE: "docs/en/read.me"}),
    )
    name = f"{registry.host}/model:v1"
    pulled = node.images.pull(name, None, NEVER)
    (imported,) = load(make_node(), export(node, tmp_path / "it.tar", name))
    assert imported == pulled


@pytest.mark.parametrize("form", ["artifact", "older", "layer"])
def test_a_module_needs_no_kept_blobs(
    node: Node, registry: FakeRegistry, contents: Contents, make_node: Nodes, tmp_path: Path, form: str
) -> None:
    if form == "artifact":
        modules.document(contents, "v1", {"os": "wasip2", "architecture": "wasm"}, CNCF, modules.layer(contents))
    elif form == "older":
        modules.document(contents, "v1", None, modules.OLD, modules.layer(contents, modules.CONTENT))
    else:
        config = modules.runwasi_config(sha256(modules.WASM), Entrypoint=["hello.wasm"])
        modules.document(contents, "v1", config, OCI_CONFIG, modules.layer(contents, modules.RUNWASI))
    name = f"{registry.host}/app:v1"
    pulled = node.images.pull(name, None, NEVER)
    assert load(make_node(), export(node, tmp_path / "it.tar", name)) == (pulled,)


def test_both_images_of_a_name_are_exported_and_come_back(
    registry: FakeRegistry, both: Callable[[bytes], Any], make_node: Nodes, tmp_path: Path
) -> None:
    both(b"")
    one, two = keeping(make_node, registry), make_node(keep_blobs=True)
    name = f"{registry.host}/app:both"
    pulled = {one.images.pull(name, None, NEVER, wasm=wasm).id for wasm in (False, True)}
    assert {image.id for image in load(two, export(one, tmp_path / "it.tar", name))} == pulled
    assert two.images.list() == one.images.list()


def test_one_image_of_a_name_for_two_does_not_take_the_name_from_the_other(
    registry: FakeRegistry, both: Callable[[bytes], Any], make_node: Nodes, tmp_path: Path
) -> None:
    both(b"")
    one, two = keeping(make_node, registry), keeping(make_node, registry)
    name = f"{registry.host}/app:both"
    module = one.images.pull(name, None, NEVER, wasm=True)
    archive = export(one, tmp_path / "it.tar", name)
    assert load(two, archive) == (module,)
    # Of the program nothing is known yet: it is to be pulled.
    with pytest.raises(NotFound):
        two.images.resolve(name)
    program = two.images.pull(name, None, NEVER)
    load(two, archive)
    assert (two.images.resolve(name), two.images.resolve(name, wasm=True)) == (program, module)


def test_a_package_can_always_be_exported_and_is_verified_when_it_comes_back(
    node: Node, registry: FakeRegistry, contents: Contents, make_node: Nodes, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/it.pem").write_bytes(KEY.public.pem())
    trusting = PackagesConfig(trusted_keys=str(tmp_path / "keys"))
    node.images.reconfigure(node.config, [], trusting)
    serve(contents, make())
    name = f"{registry.host}/logger:v1"
    pulled = node.images.pull(name, None, NEVER)
    archive = export(node, tmp_path / "it.tar", name)
    two = make_node()
    with pytest.raises(PermissionDenied, match="SignatureValidationFailed"):
        load(two, archive)
    assert two.left_over() == []
    two.images.reconfigure(two.config, [], trusting)
    assert load(two, archive) == (pulled,)


def test_a_package_file_is_imported_under_its_own_name(make_node: Nodes, make: Make, tmp_path: Path) -> None:
    node = make_node()
    node.images.reconfigure(node.config, [], PackagesConfig(unsigned="allow"))
    (image,) = load(node, make())
    assert image.repo_tags == ("localhost/acme/logger:1.2.0",)
    assert load(node, make(), "registry.example/x:y")[0].repo_tags == (
        "localhost/acme/logger:1.2.0",
        "registry.example/x:y",
    )


def layout_of(path: Path, contents: Contents, entries: list[dict[str, Any]], **members: bytes) -> Path:
    found = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
    }
    blobs = {**contents.blobs, **{name: data for name, (_, data) in contents.manifests.items() if ":" in name}}
    found |= {f"blobs/{digest.replace(':', '/')}": data for digest, data in blobs.items()} | members
    path.write_bytes(tar_of(found))
    return path


def test_names_come_from_whichever_annotation_has_one(make_node: Nodes, contents: Contents, tmp_path: Path) -> None:
    made = contents.add_image()
    full, short = "io.containerd.image.name", "org.opencontainers.image.ref.name"
    node = make_node()
    for notes, tags in (
        ({full: "registry.example/a:1", short: "1"}, "registry.example/a:1"),
        ({short: "registry.example/b:2"}, "registry.example/b:2"),
        ({short: "busybox:3"}, "docker.io/library/busybox:3"),
    ):
        path = layout_of(tmp_path / "it.tar", contents, [made | {"annotations": notes}])
        assert tags in load(node, path)[0].repo_tags
    for notes in ({short: "latest"}, {}):
        path = layout_of(tmp_path / "it.tar", contents, [made | {"annotations": notes}])
        with pytest.raises(InvalidInput, match="has no name"):
            load(node, path)
        assert "x.example/y:latest" in load(node, path, "x.example/y")[0].repo_tags


def test_a_blob_that_is_missing_short_or_wrong_leaves_nothing(
    make_node: Nodes, contents: Contents, tmp_path: Path
) -> None:
    made = contents.add_image("v1")
    node = make_node()
    good = dict(contents.blobs)
    for digest, data in good.items():
        for bad in (None, data[:-1], bytes([data[0] ^ 1]) + data[1:]):
            contents.blobs = (
                {**good, digest: bad} if bad is not None else {k: v for k, v in good.items() if k != digest}
            )
            path = layout_of(tmp_path / "it.tar", contents, [made])
            with pytest.raises(ForgeError):
                load(node, path, "x.example/y:1")
            assert (node.images.list(), node.left_over()) == ([], [])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(tarfile.SYMTYPE, "index.json"), (tarfile.LNKTYPE, "oci-layout"), (tarfile.SYMTYPE, "blobs/sha256/" + 64 * "0")],
)
def test_a_part_that_is_a_link_is_refused(tmp_path: Path, kind: bytes, name: str) -> None:
    path = tmp_path / "it.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with path.open("rb") as file, pytest.raises(InvalidInput, match="no plain file"):
        Archive(cast(BinaryIO, file), "it")


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.tar"
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("index.json"))
    with path.open("rb") as file, pytest.raises(InvalidInput, match="there twice"):
        Archive(cast(BinaryIO, file), "it")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_an_archive_or_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "it.tar"
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(ForgeError):
        Archive(cast(BinaryIO, file), "it")


def test_a_name_that_is_not_here_cannot_be_exported(node: Node, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        export(node, tmp_path / "it.tar", "app:1")
    with pytest.raises(InvalidInput):
        export(node, tmp_path / "it.tar")


def test_an_import_ends_with_its_caller(make_node: Nodes, contents: Contents, tmp_path: Path) -> None:
    made = contents.add_image("v1")
    node, gone = make_node(), Deadline()
    gone.abandon()
    path = layout_of(tmp_path / "it.tar", contents, [made])
    with path.open("rb") as file, pytest.raises(ForgeError):
        node.images.load(Archive(cast(BinaryIO, file), "it"), gone, "x.example/y:1")
    assert node.left_over() == []
