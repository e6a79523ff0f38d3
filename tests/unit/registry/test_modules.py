"""WebAssembly images: the four forms they come in, and names that stand for one of them and a Linux image."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unimplemented
from forgeone_shim.registry import artifacts
from forgeone_shim.registry.manifest import OCI_MANIFEST, Index, Manifest, Platform, choose, is_shared, parse_manifest
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.modules import SPIN
from forgeone_shim.registry.records import ImageRecords

from .conftest import Node
from .registry_double import OCI_CONFIG, OCI_LAYER, Contents, FakeRegistry, sha256, tar_of
from .test_pull import pull_fails

WASM = b"\0asm\1\0\0\0"
CNCF, OLD = "application/vnd.wasm.config.v0+json", "application/vnd.wasm.config.v1+json"
RAW, RUNWASI = "application/wasm", "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
CONTENT = "application/vnd.wasm.content.layer.v1+wasm"
HOST = Platform("linux", "amd64")


def document(contents: Contents, tag: str, config: Any, config_type: str, *layers: Any, **more: Any) -> Any:
    """A manifest whose config is this document, or none."""
    data = b"{}" if config is None else json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": contents.add_blob(data, config_type),
        "layers": list(layers),
        **more,
    }
    return contents.add_manifest(manifest, tag)


def layer(contents: Contents, media_type: str = RAW, data: bytes = WASM, **notes: str) -> Any:
    return contents.add_blob(data, media_type) | ({"annotations": notes} if notes else {})


def runwasi_config(*diff_ids: str, **config: Any) -> dict[str, Any]:
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    return {"architecture": "wasm", "os": "wasip1", "config": config, "rootfs": rootfs}


def read(node: Node, image: Image) -> bytes:
    """The module, where the image says that it is."""
    found = [node.layers.path(one) / image.module.lstrip("/") for one in image.layers]
    return next(path.read_bytes() for path in found if path.exists())


def test_an_artifact_of_one_module_is_an_image_of_a_file(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    config = {"created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [sha256(WASM)]}
    made = document(contents, "v1", config, CNCF, layer(contents))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert (image.module, image.id, image.artifact) == ("/module.wasm", made["digest"], CNCF)
    assert (image.platform, image.is_wasm, image.created) == ("wasip2/wasm", True, "2026-01-01T00:00:00Z")
    assert (read(node, image), image.size > len(WASM)) == (WASM, True)
    assert node.images.resolve(f"{registry.host}/app@{made['digest']}") == image
    node.images.remove(image.id)
    assert node.left_over() == []


@pytest.mark.parametrize("kind", [OLD, SPIN, RAW])
def test_older_artifacts_are_images_too(node: Node, registry: FakeRegistry, contents: Contents, kind: str) -> None:
    document(contents, "v1", None, kind, layer(contents, CONTENT, **{artifacts.TITLE: "bin/hello.wasm"}))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert (image.module, image.platform) == ("/bin/hello.wasm", "wasi/wasm")
    assert read(node, image) == WASM


def test_two_modules_with_the_same_empty_config_are_two_images(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    for tag in ("a", "b"):
        document(contents, tag, None, OLD, layer(contents, CONTENT, WASM + tag.encode()))
        node.images.pull(f"{registry.host}/app:{tag}", None, NEVER)
    assert {read(node, image)[-1:] for image in node.images.list()} == {b"a", b"b"}


def test_an_image_whose_layer_is_a_module_keeps_how_to_run_it(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    config = runwasi_config(sha256(WASM), Entrypoint=["hello.wasm"], Env=["A=b"])
    made = document(contents, "v1", config, OCI_CONFIG, layer(contents, RUNWASI))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert (image.module, image.artifact, image.id) == ("/module.wasm", "", made["digest"])
    assert (image.config.entrypoint, image.config.env) == (("hello.wasm",), ("A=b",))
    assert read(node, image) == WASM


def test_an_application_of_spins_is_an_image_of_its_module(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    locked = layer(contents, SPIN, b"{}")
    document(contents, "v1", runwasi_config(), OCI_CONFIG, layer(contents, CONTENT), locked)
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert (image.module, image.artifact, read(node, image)) == ("/module.wasm", "", WASM)
    assert (node.layers.path(image.layers[1]) / "spin.json").read_bytes() == b"{}"
    node.images.remove(image.id)
    data = layer(contents, "application/vnd.wasm.content.layer.v1+data", b"x")
    document(contents, "v2", runwasi_config(), OCI_CONFIG, layer(contents, CONTENT), data, locked)
    pull_fails(node, f"{registry.host}/app:v2", Unimplemented, "not a filesystem layer")
    document(contents, "v3", runwasi_config(), OCI_CONFIG, locked)
    pull_fails(node, f"{registry.host}/app:v3", Unimplemented, "not a filesystem layer")


def test_an_image_may_have_files_beside_its_module(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    tar = tar_of({"data.txt": b"x"})
    config = runwasi_config(sha256(tar), sha256(WASM))
    document(contents, "v1", config, OCI_CONFIG, layer(contents, OCI_LAYER, tar), layer(contents, RUNWASI))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert image.layers[0] == sha256(tar)
    assert (node.layers.path(image.layers[0]) / "data.txt").read_bytes() == b"x"
    assert read(node, image) == WASM


def test_a_config_without_diff_ids_is_enough_where_every_layer_is_the_module(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    document(contents, "v1", {"architecture": "wasm", "os": "wasi"}, OCI_CONFIG, layer(contents))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert read(node, image) == WASM
    node.images.remove(image.id)
    tar = layer(contents, OCI_LAYER, tar_of({"data": b""}))
    document(contents, "v2", {"architecture": "wasm", "os": "wasi"}, OCI_CONFIG, tar, layer(contents))
    pull_fails(node, f"{registry.host}/app:v2", Unimplemented, "no root filesystem layers")


@pytest.mark.parametrize("platform", [("wasi", "wasm"), ("wasip1", "wasm"), ("wasi", "wasm32")])
def test_an_image_of_ordinary_layers_is_pulled_for_its_own_platform(
    node: Node, registry: FakeRegistry, contents: Contents, platform: tuple[str, str]
) -> None:
    tar = tar_of({"app.wasm": WASM})
    config = runwasi_config(sha256(tar), Entrypoint=["/app.wasm"]) | dict(
        zip(("os", "architecture"), platform, strict=True)
    )
    document(contents, "v1", config, OCI_CONFIG, layer(contents, OCI_LAYER, tar))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert (image.module, image.is_wasm, image.platform) == ("", True, "/".join(platform))
    assert image.id.startswith("sha256:")


def test_what_a_browser_runs_is_no_module_for_this_node(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    tar = tar_of({"app.wasm": WASM})
    config = runwasi_config(sha256(tar)) | {"os": "js"}
    document(contents, "v1", config, OCI_CONFIG, layer(contents, OCI_LAYER, tar))
    pull_fails(node, f"{registry.host}/app:v1", NotFound, "it is for js/wasm")


@pytest.mark.parametrize(
    ("config", "error", "why"),
    [
        (runwasi_config("sha256:" + "0" * 64), FailedPrecondition, "has the diff id"),
        (runwasi_config(sha256(WASM)) | {"architecture": "amd64", "os": "linux"}, Unimplemented, "is for linux/amd64"),
        (runwasi_config(sha256(WASM), sha256(b"x")), FailedPrecondition, "names 2 layers"),
    ],
)
def test_a_config_that_does_not_fit_its_module_is_refused(
    node: Node, registry: FakeRegistry, contents: Contents, config: Any, error: type[Exception], why: str
) -> None:
    document(contents, "v1", config, OCI_CONFIG, layer(contents, RUNWASI))
    pull_fails(node, f"{registry.host}/app:v1", error, why)


def test_an_image_of_several_modules_is_refused_and_such_an_artifact_can_only_be_mounted() -> None:
    layers = [{"mediaType": RAW, "digest": sha256(bytes([n])), "size": 1} for n in range(2)]
    with pytest.raises(Unimplemented, match="2 WebAssembly modules"):
        parsed(OCI_CONFIG, layers)
    assert parsed(CNCF, layers).module == ""


def test_an_application_with_files_that_nobody_would_mount_can_only_be_mounted() -> None:
    files = [
        {"mediaType": CONTENT, "digest": sha256(b"a"), "size": 1},
        {"mediaType": "application/vnd.wasm.content.layer.v1+data", "digest": sha256(b"b"), "size": 1},
    ]
    assert parsed(SPIN, files).module == ""
    assert parsed(OLD, files).module == "/module.wasm"


def test_an_artifact_of_another_type_has_rules_of_its_own() -> None:
    module = [{"mediaType": RAW, "digest": sha256(WASM), "size": 1}]
    assert parsed(CNCF, module, artifactType="application/vnd.example.package").module == ""


@pytest.mark.parametrize("title", ["../evil.wasm", "/module.wasm", "a//b"])
def test_a_title_leads_nowhere_else(title: str) -> None:
    described = {"mediaType": RAW, "digest": sha256(WASM), "size": 1, "annotations": {artifacts.TITLE: title}}
    for kind in (CNCF, OCI_CONFIG):
        with pytest.raises(FailedPrecondition, match="no relative path"):
            parsed(kind, [described])


def parsed(config_type: str, layers: list[Any], **more: Any) -> Manifest:
    whole = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": config_type, "digest": sha256(b"c"), "size": 2},
        "layers": layers,
        **more,
    }
    found = parse_manifest(json.dumps(whole).encode(), OCI_MANIFEST, "manifest x")
    assert isinstance(found, Manifest)
    return found


# Names that stand for two images


@pytest.mark.parametrize(
    ("platforms", "plain", "first", "shared"),
    [
        (["linux/amd64", "wasi/wasm"], 0, 1, True),
        (["wasip2/wasm", "wasip1/wasm", "linux/amd64"], 2, 0, True),
        (["wasi/wasm"], 0, 0, False),
        (["linux/amd64"], 0, 0, False),
        (["linux/arm64", "wasi/wasm"], 1, 1, False),
        ([None, "wasi/wasm"], 0, 1, False),
        (["js/wasm", "linux/amd64"], 1, 1, False),
    ],
)
def test_of_an_index_the_handlers_image_is_taken(
    platforms: list[str | None], plain: int, first: int, shared: bool
) -> None:
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": sha256(bytes([at])), "size": 1}
        | ({"platform": dict(zip(("os", "architecture"), text.split("/"), strict=True))} if text else {})
        for at, text in enumerate(platforms)
    ]
    index = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), "", "index")
    assert isinstance(index, Index)
    assert choose(index, HOST, "x") == index.entries[plain]
    assert choose(index, HOST, "x", modules_first=True) == index.entries[first]
    assert is_shared(index, HOST) is shared


@pytest.fixture
def both(contents: Contents) -> Callable[[bytes], Any]:
    """Pushes an index of a Linux image and a module under ``both``; changed content, changed index."""

    def push(content: bytes = b"") -> Any:
        linux = contents.add_image(layers=[tar_of({"bin": content})])
        wasm = document(contents, "only-wasm", None, OLD, layer(contents, CONTENT, WASM + content))
        entries = [
            linux | {"platform": {"os": "linux", "architecture": "amd64"}},
            wasm | {"platform": {"os": "wasi", "architecture": "wasm"}},
        ]
        return contents.add_index("both", entries=entries)

    push()
    return push


def test_a_name_of_two_images_has_both_whoever_pulls_first(
    node: Node, registry: FakeRegistry, both: Callable[[bytes], Any]
) -> None:
    name = f"{registry.host}/app:both"
    module = node.images.pull(name, None, NEVER, wasm=True)
    # For a pod of programs there is none yet: its kubelet pulls.
    with pytest.raises(NotFound):
        node.images.resolve(name)
    linux = node.images.pull(name, None, NEVER)
    assert (module.is_wasm, linux.is_wasm) == (True, False)
    assert node.images.resolve(name).id == linux.id
    assert node.images.resolve(name, wasm=True).id == module.id
    assert [image.repo_tags for image in node.images.list()] == [(name,), (name,)]
    assert {image.id for image in node.images.named(name)} == {linux.id, module.id}
    assert node.images.resolve(module.id).id == module.id
    node.images.remove(name)
    assert node.left_over() == []


def test_the_right_image_is_taken_for_a_container_although_the_other_was_resolved(
    node: Node, registry: FakeRegistry, both: Callable[[bytes], Any]
) -> None:
    name = f"{registry.host}/app:both"
    linux, module = (node.images.pull(name, None, NEVER, wasm=wasm) for wasm in (False, True))
    assert node.images.choose(linux.id, name, wasm=True).id == module.id
    assert node.images.choose(linux.id, "", wasm=True).id == linux.id, "whoever says an id means it"
    pinned = f"{registry.host}/app@{linux.manifest_digest}"
    assert node.images.choose(linux.id, pinned, wasm=True).id == linux.id
    node.images.remove(module.id)
    assert node.images.choose(linux.id, name, wasm=True).id == linux.id, "better than none"


def test_a_name_that_only_one_image_has_is_that_image_for_everybody(
    node: Node, registry: FakeRegistry, both: Callable[[bytes], Any]
) -> None:
    name = f"{registry.host}/app:both"
    for tag in ("both", "only-wasm"):
        node.images.pull(f"{registry.host}/app:{tag}", None, NEVER, wasm=True)
    assert node.images.resolve(f"{registry.host}/app:only-wasm").is_wasm
    with pytest.raises(NotFound):
        node.images.resolve(name)


def test_a_tag_that_moves_takes_its_old_images_along(
    node: Node, registry: FakeRegistry, both: Callable[[bytes], Any]
) -> None:
    name = f"{registry.host}/app:both"
    old = [node.images.pull(name, None, NEVER, wasm=wasm) for wasm in (False, True)]
    both(b"new")
    new = node.images.pull(name, None, NEVER, wasm=True)
    assert [node.images.resolve(one.id).repo_tags for one in old] == [(), ()]
    assert node.images.resolve(name, wasm=True).id == new.id
    with pytest.raises(NotFound):
        node.images.resolve(name)


def test_a_name_that_stands_for_one_image_again_is_not_shared_any_more(
    node: Node, registry: FakeRegistry, contents: Contents, both: Callable[[bytes], Any]
) -> None:
    name = f"{registry.host}/app:both"
    node.images.pull(name, None, NEVER, wasm=True)
    contents.manifests["both"] = contents.manifests["only-wasm"]
    node.images.pull(name, None, NEVER)
    assert node.images.resolve(name).is_wasm


def test_a_record_from_before_there_were_modules_is_read(node: Node) -> None:
    image = Image(id="sha256:" + "1" * 64, repo_tags=("example.com/app:v1",))
    old = msgspec.to_builtins(image)
    for key in ("module", "shared"):
        del old[key]
    node.store.put("image", image.id, old)
    assert ImageRecords(node.store, ()).find("example.com/app:v1") == image


@pytest.mark.parametrize(("notes", "file"), [({}, sha256(WASM)[7:]), ({artifacts.TITLE: "hello.wasm"}, "hello.wasm")])
def test_a_module_that_was_pulled_as_an_artifact_of_files_can_be_run(
    node: Node, registry: FakeRegistry, contents: Contents, notes: dict[str, str], file: str
) -> None:
    document(contents, "v1", None, OLD, layer(contents, CONTENT, **notes))
    now = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    before = artifacts.part(sha256(WASM), notes)
    (node.layers.path(now.layers[0]) / now.module[1:]).rename(node.layers.path(now.layers[0]) / before.file)
    node.store.put("image", now.id, replace(now, module="", os="linux", architecture="amd64"))
    image = node.service().resolve(now.id)
    assert (image.module, image.platform) == (f"/{file}", "wasi/wasm")
    assert read(node, image) == WASM


def test_an_artifact_whose_manifest_is_gone_stays_one(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    document(contents, "v1", None, OLD, layer(contents, CONTENT))
    now = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    old = replace(now, module="", manifest_digest=sha256(b"gone"))
    node.store.put("image", now.id, old)
    assert node.service().resolve(now.id) == old


# Those who get ready for images


class Audience:
    """Keeps what it is told; ``fail`` is raised by an arrival."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fail: Exception | None = None
        self.during: Callable[[Deadline], None] = lambda _: None

    def arrived(self, image: Image, deadline: Deadline) -> None:
        self.told.append(f"+{image.module}")
        self.during(deadline)
        if self.fail is not None:
            raise self.fail

    def remaining(self, ids: Collection[str]) -> None:
        self.told.append(f"={len(ids)}")
        if self.fail is not None:
            raise self.fail


@pytest.fixture
def audience(node: Node) -> Audience:
    node.audience = Audience()
    node.images = node.service()
    return node.audience


def test_a_pull_waits_for_who_gets_ready_and_a_removal_tells_what_remains(
    node: Node, registry: FakeRegistry, contents: Contents, audience: Audience
) -> None:
    document(contents, "v1", None, OLD, layer(contents, CONTENT))
    for _ in range(2):
        image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    node.images.remove(image.id)
    node.images.remove(image.id)
    node.images.collect_garbage()
    assert audience.told == ["+/module.wasm", "+/module.wasm", "=0", "=0"]


def test_an_image_is_there_although_nothing_could_get_ready_for_it(
    node: Node, registry: FakeRegistry, contents: Contents, audience: Audience
) -> None:
    contents.add_image("v1")
    audience.fail = FailedPrecondition("it is malformed")
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert node.images.list() == [image]
    node.images.remove(image.id)
    assert node.left_over() == []


def test_getting_ready_ends_when_nobody_waits_for_the_pull(
    node: Node, registry: FakeRegistry, contents: Contents, audience: Audience
) -> None:
    contents.add_image("v1")
    caller = Deadline.after(30)

    def during(deadline: Deadline) -> None:
        gone = threading.Event()
        deadline.listen(gone.set)
        caller.abandon()
        assert gone.wait(10)

    audience.during = during
    with pytest.raises(DeadlineExceeded, match="went away"):
        node.images.pull(f"{registry.host}/app:v1", None, caller)
    assert len(node.images.list()) == 1
