"""Pulls against a registry in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ForgeError,
    InvalidInput,
    NotFound,
    Unavailable,
    Unimplemented,
)
from forgeone_shim.registry import source
from forgeone_shim.registry.model import LayerProgress, LayerState

from .conftest import Node
from .registry_double import Contents, FakeRegistry, sha256, tar_of

BIG = bytes(range(256)) * 4096


def big_layer(number: int = 0) -> bytes:
    return tar_of({f"file{number}": BIG + bytes([number])})


def pull_fails(node: Node, name: str, kind: type[ForgeError], text: str, seconds: float | None = None) -> str:
    """A pull that fails this way and leaves nothing behind; returns the message."""
    with pytest.raises(kind, match=text) as caught:
        node.images.pull(name, None, Deadline.after(seconds))
    assert node.left_over() == []
    assert node.images.list() == []
    return str(caught.value)


@pytest.mark.parametrize("packed", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("docker", [False, True])
def test_an_image_is_pulled_by_tag(
    node: Node, registry: FakeRegistry, contents: Contents, packed: str, docker: bool
) -> None:
    tars = [tar_of({"a": b"1"}), tar_of({"b": b"2"})]
    manifest = contents.add_image("v1", layers=tars, packed=packed, docker=docker, config={"User": "1000:5"})
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert image.id == contents.config_digest(manifest)
    assert image.repo_tags == (f"{registry.host}/app:v1",)
    assert image.repo_digests == (f"{registry.host}/app@{manifest['digest']}",)
    assert image.layers == tuple(map(sha256, tars))
    assert (image.uid, image.username) == (1000, "")
    assert image.size > 0
    assert (node.layers.path(image.layers[1]) / "b").read_bytes() == b"2"
    assert node.images.list() == [image]
    assert not (node.root / "blobs").exists()


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_gives_its_own_digest_to_the_image(
    node: Node, registry: FakeRegistry, contents: Contents, docker: bool
) -> None:
    other = contents.add_image(architecture="arm64", layers=[tar_of({"arm": b""})])
    mine = contents.add_image()
    entries = [
        other | {"platform": {"os": "linux", "architecture": "arm64"}},
        mine | {"platform": {"os": "linux", "architecture": "amd64"}},
    ]
    index = contents.add_index("v1", entries=entries, docker=docker)
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert image.id == contents.config_digest(mine)
    assert image.repo_digests == (f"{registry.host}/app@{index['digest']}",)
    assert image.manifest_digest == mine["digest"]


def test_a_pull_by_digest_gives_no_tag(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    manifest = contents.add_image("v1")
    name = f"{registry.host}/app@{manifest['digest']}"
    image = node.images.pull(f"{registry.host}/app:v1@{manifest['digest']}", None, NEVER)
    assert (image.repo_tags, image.repo_digests) == ((), (name,))
    assert node.images.resolve(name) == image


def test_a_tag_that_moved_leaves_the_old_image_its_digest(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    name = f"{registry.host}/app:v1"
    contents.add_image("v1")
    old = node.images.pull(name, None, NEVER)
    contents.add_image("v1", layers=[tar_of({"new": b""})])
    new = node.images.pull(name, None, NEVER)
    assert node.images.resolve(name) == new
    kept = node.images.resolve(old.id)
    assert (kept.repo_tags, kept.repo_digests) == ((), old.repo_digests)
    assert len(node.images.list()) == 2


def test_a_layer_that_is_here_is_not_fetched_again(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    shared = tar_of({"base": b"base"})
    contents.add_image("one", layers=[shared])
    two = contents.add_image("two", layers=[shared, tar_of({"top": b""})])
    node.images.pull(f"{registry.host}/app:one", None, NEVER)
    seen: list[LayerProgress] = []
    node.images.pull(f"{registry.host}/app:two", None, NEVER, seen.append)
    base, top = contents.layer_digests(two)
    assert len(registry.paths(base)) == 1
    assert {(p.digest, p.state) for p in seen} >= {(base, LayerState.EXISTS), (top, LayerState.DONE)}


def test_two_pulls_of_one_image_share_one_download(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    manifest = contents.add_image("v1", layers=[big_layer()])
    registry.delay = 0.3
    with ThreadPoolExecutor(4) as pool:
        name = f"{registry.host}/app:v1"
        images = list(pool.map(lambda _: node.images.pull(name, None, NEVER), range(4)))
    assert len({image.id for image in images}) == 1
    assert len(registry.paths("manifests/")) == 1
    assert len(registry.paths(contents.layer_digests(manifest)[0])) == 1


def test_images_pulled_at_once_share_the_download_of_a_layer(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    shared = big_layer()
    one = contents.add_image("one", layers=[shared, tar_of({"1": b""})])
    contents.add_image("two", layers=[shared, tar_of({"2": b""})])
    registry.delay = 0.2
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda tag: node.images.pull(f"{registry.host}/app:{tag}", None, NEVER), ["one", "two"]))
    assert len(registry.paths(contents.layer_digests(one)[0])) == 1
    assert node.layers.unpacked.count(sha256(shared)) == 1


def test_layers_come_in_parallel(make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents) -> None:
    node = make_node(max_concurrent_downloads=3)
    node.plain(registry)
    at_once = threading.Barrier(3, timeout=5)

    def hold(handler: object) -> bool:
        if registry.seen[-1].path.rpartition("/")[2] in layers:
            at_once.wait()
        return False

    manifest = contents.add_image("v1", layers=[tar_of({str(n): b""}) for n in range(3)])
    layers = contents.layer_digests(manifest)
    registry.hook = hold
    assert node.images.pull(f"{registry.host}/app:v1", None, NEVER).layers


def test_a_cut_download_goes_on_where_it_broke(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    manifest = contents.add_image("v1", layers=[big_layer()], packed="none")
    registry.cut_after = [1, 100_000, 400_000]
    node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    (layer,) = contents.layer_digests(manifest)
    ranges = [seen.headers.get("Range", "") for seen in registry.seen if layer in seen.path]
    assert ranges == ["", "bytes=1-", "bytes=100001-", "bytes=500001-"]


def test_a_cut_download_goes_on_where_the_registry_knows_no_ranges(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1", layers=[big_layer()], packed="none")
    registry.cut_after = [300_000]
    registry.ranges = False
    assert node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_a_download_that_is_always_cut_fails_and_names_the_layer(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents
) -> None:
    node = make_node(progress_timeout=0.5)
    node.plain(registry)
    manifest = contents.add_image("v1", layers=[big_layer()], packed="none")
    registry.cut_after = [0] * 50
    pull_fails(node, f"{registry.host}/app:v1", Unavailable, f"layer {contents.layer_digests(manifest)[0]}")


def test_a_stalled_download_fails_after_the_progress_timeout_and_names_the_layer(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents
) -> None:
    node = make_node(progress_timeout=0.4)
    node.plain(registry)
    manifest = contents.add_image("v1", layers=[big_layer()], packed="none")
    registry.stall_after = 5000
    began = time.monotonic()
    pull_fails(
        node, f"{registry.host}/app:v1", Unavailable, f"layer {contents.layer_digests(manifest)[0]}.*no progress"
    )
    assert time.monotonic() - began < 5


def test_a_slow_unpack_is_no_stall(make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents) -> None:
    node = make_node(progress_timeout=0.2)
    node.plain(registry)
    contents.add_image("v1", layers=[big_layer()], packed="none")
    slow = iter([0.5])
    assert node.images.pull(f"{registry.host}/app:v1", None, NEVER, lambda progress: time.sleep(next(slow, 0)))


def test_a_deadline_that_passes_leaves_nothing_behind(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_image("v1", layers=[tar_of({"small": b""}), big_layer()], packed="none")
    registry.stall_after = 500_000
    began = time.monotonic()
    pull_fails(node, f"{registry.host}/app:v1", DeadlineExceeded, "app:v1", 1.5)
    assert time.monotonic() - began < 8
    assert node.layers.unpacked


def test_a_deadline_in_the_past_asks_nobody(node: Node, registry: FakeRegistry) -> None:
    pull_fails(node, f"{registry.host}/app:v1", DeadlineExceeded, "app:v1", 0)
    assert registry.seen == []


def test_a_pull_outlives_the_caller_that_began_it_while_another_waits(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1", layers=[big_layer()])
    registry.delay = 1.5
    name = f"{registry.host}/app:v1"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(node.images.pull, name, None, Deadline.after(1.0))
        time.sleep(0.2)
        second = pool.submit(node.images.pull, name, None, NEVER)
        with pytest.raises(DeadlineExceeded):
            first.result()
        assert second.result().repo_tags == (name,)
    assert len(registry.paths("manifests/")) == 1


def test_a_pull_whose_caller_goes_away_ends_at_once_and_leaves_nothing(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1", layers=[big_layer()], packed="none")
    registry.stall_after = 500_000
    deadline = Deadline()
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(node.images.pull, f"{registry.host}/app:v1", None, deadline)
        while not registry.paths("blobs/"):
            time.sleep(0.01)
        deadline.abandon()
        with pytest.raises(DeadlineExceeded, match="went away while pulling"):
            pull.result(timeout=5)
    assert node.left_over() == []


def test_a_pull_goes_on_for_the_others_when_a_caller_goes_away(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1", layers=[big_layer()])
    registry.delay = 0.5
    name, deadline = f"{registry.host}/app:v1", Deadline()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(node.images.pull, name, None, deadline)
        second = pool.submit(node.images.pull, name, None, NEVER)
        while not registry.seen:
            time.sleep(0.01)
        deadline.abandon()
        with pytest.raises(DeadlineExceeded):
            first.result(timeout=5)
        assert second.result().repo_tags == (name,)
    assert len(registry.paths("manifests/")) == 1


def test_a_failed_layer_stops_the_others_and_takes_them_along(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    manifest = contents.add_image("v1", layers=[tar_of({"good": b""}), tar_of({"lost": b""})])
    lost = contents.layer_digests(manifest)[1]
    del contents.blobs[lost]
    pull_fails(node, f"{registry.host}/app:v1", NotFound, lost)


def test_a_failed_pull_keeps_what_another_image_needs(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    shared = tar_of({"base": b""})
    contents.add_image("one", layers=[shared])
    node.images.pull(f"{registry.host}/app:one", None, NEVER)
    two = contents.add_image("two", layers=[shared, tar_of({"lost": b""})])
    del contents.blobs[contents.layer_digests(two)[1]]
    with pytest.raises(NotFound):
        node.images.pull(f"{registry.host}/app:two", None, NEVER)
    assert list(node.layers.ids()) == [sha256(shared)]


def test_a_blob_with_other_bytes_is_refused(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    manifest = contents.add_image("v1", layers=[tar_of({"a": b"1"})], packed="none")
    (layer,) = contents.layer_digests(manifest)
    contents.blobs[layer] = contents.blobs[layer].replace(b"1", b"2")
    pull_fails(node, f"{registry.host}/app:v1", FailedPrecondition, f"{layer}.*another digest")


def test_a_layer_that_unpacks_to_another_diff_id_is_refused(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    tar = tar_of({"a": b"1"})
    manifest = contents.add_image("good", layers=[tar])
    swapped = contents.add_image("other", layers=[tar_of({"b": b"2"})])
    media, data = contents.manifests[manifest["digest"]]
    data = data.replace(contents.layer_digests(manifest)[0].encode(), contents.layer_digests(swapped)[0].encode())
    sizes = [len(contents.blobs[m]) for m in (*contents.layer_digests(manifest), *contents.layer_digests(swapped))]
    data = data.replace(f'"size": {sizes[0]}}}]'.encode(), f'"size": {sizes[1]}}}]'.encode())
    contents.manifests["v1"] = (media, data)
    pull_fails(node, f"{registry.host}/app:v1", FailedPrecondition, "another digest")


def test_a_size_that_is_a_lie_is_refused(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    manifest = contents.add_image("v1", packed="none")
    (layer,) = contents.layer_digests(manifest)
    contents.blobs[layer] += b"more"
    pull_fails(node, f"{registry.host}/app:v1", FailedPrecondition, "its manifest says")


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    manifest = contents.add_image("v1")
    media, data = contents.manifests[manifest["digest"]]
    contents.manifests[manifest["digest"]] = (media, data + b" ")
    pull_fails(node, f"{registry.host}/app@{manifest['digest']}", Unavailable, "not what its digest")


def test_an_endless_manifest_is_refused(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.manifests["v1"] = ("application/json", b" " * (5 << 20))
    pull_fails(node, f"{registry.host}/app:v1", ForgeError, "larger than")


def test_indexes_inside_each_other_end_somewhere(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    entry = contents.add_image()
    for _ in range(6):
        entry = contents.add_index("v1", entries=[entry | {"platform": {"os": "linux", "architecture": "amd64"}}])
    pull_fails(node, f"{registry.host}/app:v1", FailedPrecondition, "indexes inside each other")


def test_an_image_for_another_machine_is_not_found(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_image("v1", architecture="s390x")
    pull_fails(node, f"{registry.host}/app:v1", NotFound, "linux/amd64.*linux/s390x")


def test_an_image_without_a_filesystem_is_refused_clearly(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1", layers=[])
    pull_fails(node, f"{registry.host}/app:v1", Unimplemented, "nothing to run")


def test_an_unknown_image_is_not_found(node: Node, registry: FakeRegistry) -> None:
    pull_fails(node, f"{registry.host}/app:nope", NotFound, "app:nope' not found on http")


def test_a_name_that_is_none_is_refused(node: Node) -> None:
    with pytest.raises(InvalidInput):
        node.images.pull("Not A Name", None, NEVER)


def test_a_server_that_is_busy_is_asked_again(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_image("v1")
    answers = iter([503, 429])

    def hook(handler: object) -> bool:
        status = next(answers, None)
        return status is not None and handler.answer(status, headers={"Retry-After": "0"})  # type: ignore[attr-defined]

    registry.hook = hook
    assert node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_a_host_that_is_down_is_unavailable(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.hosts("127.0.0.1:9", 'server = "http://127.0.0.1:9"')
    pull_fails(node, "127.0.0.1:9/app:v1", Unavailable, "http://127.0.0.1:9: Connection refused")


def test_something_that_is_no_registry_is_unavailable(node: Node, registry: FakeRegistry) -> None:
    def hook(handler: object) -> bool:
        handler.wfile.write(b"220 mail ready\r\n")  # type: ignore[attr-defined]
        handler.close_connection = True  # type: ignore[attr-defined]
        return True

    registry.hook = hook
    pull_fails(node, f"{registry.host}/app:v1", Unavailable, "does not speak HTTP")


def test_close_ends_a_pull_and_undoes_it(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_image("v1", layers=[big_layer()], packed="none")
    registry.stall_after = 500_000
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(node.images.pull, f"{registry.host}/app:v1", None, NEVER)
        while not registry.paths("blobs/"):
            time.sleep(0.01)
        node.images.close()
        with pytest.raises(Unavailable):
            pull.result(timeout=5)
    assert node.left_over() == []


def test_blobs_are_kept_where_configured_and_go_with_their_image(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents
) -> None:
    node = make_node(keep_blobs=True)
    node.plain(registry)
    (layer,) = contents.layer_digests(contents.add_image("v1"))
    image = node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    blob = node.root / "blobs" / "sha256" / layer.removeprefix("sha256:")
    assert blob.read_bytes() == contents.blobs[layer]
    node.images.remove(image.id)
    assert node.left_over() == []


def test_hosts_that_have_it_not_are_named_once_each() -> None:
    def nowhere(where: str) -> NotFound:
        return NotFound("manifest", "app:v1", where=where)

    mirror, origin = nowhere("http://mirror"), nowhere("http://origin")
    assert source._combined([mirror, mirror]).what == "manifest 'app:v1' not found on http://mirror"
    both = "manifest 'app:v1' not found on http://origin (before that: manifest 'app:v1' not found on http://mirror)"
    assert source._combined([mirror, origin]).what == both
