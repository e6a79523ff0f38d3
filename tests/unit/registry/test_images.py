"""What the node keeps: finding, removing, counting, collecting."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import InvalidInput, NotFound
from forgeone_shim.registry.model import Image, ImageConfig
from forgeone_shim.registry.records import ImageRecords, Lease, is_pinned
from forgeone_shim.registry.reference import Reference

from .conftest import Node
from .registry_double import Contents, FakeRegistry, sha256, tar_of


@pytest.fixture
def pulled(node: Node, registry: FakeRegistry, contents: Contents) -> Image:
    contents.add_image("v1", "v2", "latest")
    for tag in ("v1", "v2", "latest"):
        image = node.images.pull(f"{registry.host}/app:{tag}", None, NEVER)
    return image


def test_one_image_has_all_its_tags(node: Node, registry: FakeRegistry, pulled: Image) -> None:
    assert pulled.repo_tags == tuple(f"{registry.host}/app:{tag}" for tag in ("latest", "v1", "v2"))
    assert node.images.list() == [pulled]


def test_an_image_is_found_by_every_kind_of_name(node: Node, registry: FakeRegistry, pulled: Image) -> None:
    bare = pulled.id.removeprefix("sha256:")
    names = [pulled.id, bare, bare[:12], pulled.id[:30], *pulled.repo_tags, *pulled.repo_digests]
    for name in [*names, f"{registry.host}/app", f"{registry.host}/app:v1@{pulled.repo_digests[0].partition('@')[2]}"]:
        assert node.images.resolve(name) == pulled


def test_what_is_not_here_is_not_found(node: Node, registry: FakeRegistry, pulled: Image) -> None:
    short = pulled.id[7:13]
    for name in ["0" * 64, f"{registry.host}/app:v3", "busybox", "f" * 12, short]:
        with pytest.raises(NotFound):
            node.images.resolve(name)
    with pytest.raises(InvalidInput):
        node.images.resolve("Not a name")


def test_removing_one_tag_removes_the_image(node: Node, registry: FakeRegistry, pulled: Image) -> None:
    node.images.remove(f"{registry.host}/app:v1")
    assert node.images.list() == []
    assert node.left_over() == []
    node.images.remove(f"{registry.host}/app:v1")
    node.images.remove("0" * 64)


def test_removing_at_once_is_no_error(node: Node, pulled: Image) -> None:
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(node.images.remove, [pulled.id] * 5))
    assert node.left_over() == []


def test_layers_of_containers_stay_until_they_are_collected(node: Node, pulled: Image) -> None:
    node.in_use = set(pulled.layers)
    node.images.remove(pulled.id)
    assert set(node.layers.ids()) == set(pulled.layers)
    node.in_use = set()
    node.images.collect_garbage()
    assert node.left_over() == []


def test_layers_of_another_image_stay(node: Node, registry: FakeRegistry, contents: Contents, pulled: Image) -> None:
    contents.add_image("more", layers=[tar_of({"hello": b"hello"}), tar_of({"more": b""})])
    more = node.images.pull(f"{registry.host}/app:more", None, NEVER)
    node.images.remove(pulled.id)
    assert set(node.layers.ids()) == set(more.layers)
    node.images.remove(more.id)
    assert node.left_over() == []


def test_usage_counts_layers_and_documents(node: Node, pulled: Image) -> None:
    size, inodes = node.images.usage()
    assert size == pulled.size
    assert inodes == 3
    node.images.remove(pulled.id)
    assert node.images.usage() == (0, 0)


def test_the_config_an_image_was_made_from_is_kept(node: Node, contents: Contents, pulled: Image) -> None:
    assert node.images.document(pulled.id) == contents.blobs[pulled.id]
    assert node.images.document("sha256:" + "0" * 64) is None


def test_images_outlive_the_process(node: Node, pulled: Image) -> None:
    assert node.service().resolve(pulled.id) == pulled


def test_a_dead_process_lease_does_not_hold_layers(node: Node, pulled: Image) -> None:
    node.store.put("image-lease", "dead", Lease(2**22 + 1, 1, pulled.layers, ()))
    node.images.remove(pulled.id)
    assert node.left_over() == []
    assert node.store.items("image-lease", Lease) == []


def test_a_lease_of_a_living_process_holds_layers(node: Node, pulled: Image) -> None:
    records = ImageRecords(node.store, ())
    lease = records.lease(pulled.layers, ())
    node.images.remove(pulled.id)
    assert set(node.layers.ids()) == set(pulled.layers)
    records.release(lease)
    node.images.collect_garbage()
    assert node.left_over() == []


def test_a_pull_leaves_no_lease(node: Node, pulled: Image) -> None:
    assert node.store.items("image-lease", Lease) == []


def test_the_beginning_of_two_ids_is_ambiguous(node: Node) -> None:
    records = ImageRecords(node.store, ())
    for end in ("a", "b"):
        image = Image(id="sha256:" + "0" * 63 + end)
        records.commit(image, Reference.parse(f"app:{end}"), sha256(end.encode()))
    with pytest.raises(InvalidInput, match="2 image ids"):
        records.find("0" * 12)


@pytest.mark.parametrize(
    ("pattern", "pinned"),
    [
        ("busybox", True),
        ("docker.io/library/busybox:1.36", False),
        ("docker.io/library/busybox:latest", True),
        ("docker.io/library/*", True),
        ("*busy*", True),
        ("*pause*", False),
        ("docker.io/library/busybox", True),
        ("sha256:" + "1" * 64, True),
        ("??bad name", False),
    ],
)
def test_patterns_pin_images(pattern: str, pinned: bool) -> None:
    image = Image(
        id="sha256:" + "1" * 64,
        repo_tags=("docker.io/library/busybox:latest",),
        repo_digests=("docker.io/library/busybox@sha256:" + "2" * 64,),
    )
    assert is_pinned(image, pattern) is pinned


def test_pins_show_in_every_answer(make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents) -> None:
    node = make_node(pinned=["*/app:*"])
    node.plain(registry)
    contents.add_image("v1")
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert image.pinned
    assert node.images.resolve(image.id).pinned
    assert not node.service().resolve(image.id).pinned


def test_a_new_configuration_counts_from_the_next_pull_on(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents
) -> None:
    node = make_node()
    node.plain(registry)
    contents.add_image("v1")
    contents.add_image("v2", config={"Cmd": ["two"]})
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    node.images.reconfigure(replace(node.config, keep_blobs=True), ["*/app:*"])
    assert node.images.resolve(image.id).pinned
    assert len(node.images.pull(f"{registry.host}/app:v2", None, NEVER).blobs) > len(image.blobs)
    node.images.reconfigure(replace(node.config, platform="linux/s390x"), [])
    assert not node.images.resolve(image.id).pinned


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("0", 0, ""),
        ("1000:1000", 1000, ""),
        ("www-data", None, "www-data"),
        ("www-data:adm", None, "www-data"),
        ("9" * 40, None, "9" * 40),
    ],
)
def test_the_user_is_a_number_or_a_name(user: str, uid: int | None, username: str) -> None:
    image = Image(id="x", config=ImageConfig(user=user))
    assert (image.uid, image.username) == (uid, username)
