"""Pulls from Debian's docker-registry into the real store of layers."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from forgeone_shim.config.model import RegistryConfig
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, NotFound, PermissionDenied, Unavailable
from forgeone_shim.fs.layers import LayerStore
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.service import ImageService
from forgeone_shim.state.store import StateStore
from hack.lab import images
from hack.lab.images import Entry
from hack.lab.registry import Registry

from .registries import (
    FAR,
    PASSWORD,
    USER,
    BadLine,
    Pair,
    TokenServer,
    certificate,
    connect_proxy,
    docker_registry,
    htpasswd,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

LOGIN = Credentials(username=USER, password=PASSWORD)
NOISE = random.Random(1).randbytes(3 << 20)


@pytest.fixture(scope="module")
def lab(registry: Registry) -> images.BuiltImage:
    """An image of three layers in the registry, one of them large and hard to compress."""
    layers = [
        images.layer([Entry("etc/os-release", b"forge\n"), Entry("etc/gone", b"x")]),
        images.layer([Entry("usr/noise", NOISE, 0o4755)], "zstd"),
        images.layer([Entry("etc/.wh.gone"), Entry("etc/os-release", b"forge 2\n", uid=7)], "none"),
    ]
    image = images.build(layers, {"Cmd": ["sh"]})
    images.push(registry.address, "team/app:v1", image)
    return image


@pytest.fixture(scope="module")
def data(registry: Registry, lab: images.BuiltImage) -> Path:
    """The registry's storage, for other registries to serve."""
    return registry.log.parent / "data"


class Node:
    """An image service over a real store of layers."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.root = root
        self.layers = LayerStore(root / "layers")
        self.store = StateStore(root / "forgeone.db")
        config = RegistryConfig(config_path=str(root / "certs.d"), **settings)  # type: ignore[arg-type]
        self.images = ImageService(self.store, root, config, self.layers, pinned=(), layers_in_use=set)

    def hosts(self, registry: str, text: str, mode: int = 0o644) -> None:
        folder = self.root / "certs.d" / registry
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(text)
        (folder / "hosts.toml").chmod(mode)

    def pull(self, address: str, auth: Credentials | None = None, seconds: float | None = None) -> str:
        return self.images.pull(f"{address}/team/app:v1", auth, Deadline.after(seconds)).id

    def left(self) -> list[str]:
        """Layers, half-made ones too, and documents."""
        return [
            *os.listdir(self.root / "layers"),
            *(str(p) for p in (self.root / "images").rglob("*") if p.is_file() and p.name != "lock"),
        ]

    def close(self) -> None:
        self.images.close()
        for image in self.images.list():
            self.images.remove(image.id)
        left = self.left()
        self.layers.close()
        self.store.close()
        assert left == []


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    threads = set(os.listdir("/proc/self/task"))
    files = set(os.listdir("/proc/self/fd"))
    with ExitStack() as stack:

        def make(**settings: object) -> Node:
            node = Node(tmp_path / f"node{time.monotonic_ns()}", **settings)
            stack.callback(node.close)
            return node

        yield make
    assert len(os.listdir("/proc/self/task")) <= len(threads), "a thread of a pull is left"
    assert len(os.listdir("/proc/self/fd")) <= len(files), "a descriptor of a pull is left"


@pytest.fixture
def node(make_node: Callable[..., Node], registry: Registry, lab: images.BuiltImage) -> Node:
    made = make_node()
    made.hosts(registry.address, f'server = "http://{registry.address}"')
    return made


@pytest.fixture
def ca(tmp_path: Path) -> Pair:
    return certificate(tmp_path, "ca")


def test_layers_of_every_compression_are_unpacked(node: Node, registry: Registry, lab: images.BuiltImage) -> None:
    assert node.pull(registry.address) == lab.id
    image = node.images.resolve(lab.id)
    assert image.repo_digests == (f"{registry.address}/team/app@{lab.digest}",)
    noise = node.layers.path(image.layers[1]) / "usr/noise"
    assert noise.read_bytes() == NOISE
    assert noise.stat().st_mode & 0o7777 == 0o4755
    assert (node.layers.path(image.layers[2]) / "etc/os-release").stat().st_uid == 7
    size, inodes = node.images.usage()
    assert size >= len(NOISE)
    assert inodes >= 6


def test_an_index_is_resolved_for_this_machine(node: Node, registry: Registry) -> None:
    mine = images.busybox(cmd=("index",))
    other = images.build([images.layer([Entry("x")])], architecture="s390x")
    reference = images.push_index(registry.address, "multi:v1", {"linux/s390x": other, "linux/amd64": mine})
    if mine.config.find(b'"amd64"') < 0:
        pytest.skip("the test image is for another machine")
    image = node.images.pull(reference, None, NEVER)
    assert image.id == mine.id
    assert image.repo_digests[0].partition("@")[2] not in (mine.digest, other.digest)


def test_a_docker_image_is_pulled(node: Node, registry: Registry) -> None:
    image = images.build([images.layer([Entry("docker", b"1")])], docker=True)
    reference = images.push(registry.address, "docker:v1", image)
    assert node.images.pull(reference, None, NEVER).id == image.id


def test_an_unknown_tag_is_not_found(node: Node, registry: Registry) -> None:
    with pytest.raises(NotFound, match="team/app:nope"):
        node.images.pull(f"{registry.address}/team/app:nope", None, NEVER)
    assert node.left() == []


def test_many_pulls_at_once_are_one(node: Node, registry: Registry, lab: images.BuiltImage) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: node.pull(registry.address), range(8))) == {lab.id}


def test_tls_with_a_ca_and_a_client_certificate_of_ones_own(
    make_node: Callable[..., Node], tmp_path: Path, data: Path, ca: Pair, lab: images.BuiltImage
) -> None:
    server, client = certificate(tmp_path, "server", ca), certificate(tmp_path, "client", ca)
    tls = {"certificate": str(server.cert_file), "key": str(server.key_file), "clientcas": [str(ca.cert_file)]}
    with docker_registry(tmp_path / "registry", data, tls=tls) as address:
        stranger, nameless, guest = make_node(), make_node(), make_node()
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            stranger.pull(address)
        nameless.hosts(address, f'ca = "{ca.cert_file}"')
        with pytest.raises(Unavailable):
            nameless.pull(address)
        guest.hosts(address, f'ca = "{ca.cert_file}"\nclient = [["{client.cert_file}", "{client.key_file}"]]')
        assert guest.pull(address) == lab.id


@pytest.fixture
def over_tls(tmp_path: Path, data: Path, ca: Pair) -> Iterator[str]:
    """The address of a registry for which only ``ca`` vouches."""
    server = certificate(tmp_path, "server", ca)
    tls = {"certificate": str(server.cert_file), "key": str(server.key_file)}
    with docker_registry(tmp_path / "registry", data, tls=tls) as address:
        yield address


def test_tls_without_verification_where_configured(
    make_node: Callable[..., Node], over_tls: str, lab: images.BuiltImage
) -> None:
    node = make_node()
    node.hosts(over_tls, "skip_verify = true")
    assert node.pull(over_tls) == lab.id


def test_tls_through_a_proxy_is_with_the_registry_itself(
    make_node: Callable[..., Node], over_tls: str, ca: Pair, lab: images.BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    node.hosts(FAR, f'ca = "{ca.cert_file}"')
    with connect_proxy(over_tls) as (url, seen):
        monkeypatch.setenv("https_proxy", url.replace("://", "://user:secret@"))
        assert node.pull(FAR) == lab.id
    assert {line.rpartition(" ")[0] for line in seen} == {f"CONNECT {FAR}:443"}


def test_dockers_folder_of_certificates(
    make_node: Callable[..., Node], over_tls: str, ca: Pair, lab: images.BuiltImage
) -> None:
    node = make_node()
    folder = node.root / "certs.d" / over_tls
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(ca.cert_file.read_bytes())
    assert node.pull(over_tls) == lab.id


def test_a_login(make_node: Callable[..., Node], tmp_path: Path, data: Path, lab: images.BuiltImage) -> None:
    with docker_registry(tmp_path / "registry", data, auth=htpasswd(tmp_path)) as address:
        node = make_node()
        node.hosts(address, f'server = "http://{address}"')
        for auth in (None, Credentials(username=USER, password="guess")):
            with pytest.raises(PermissionDenied, match="unauthorized"):
                node.pull(address, auth)
        assert node.left() == []
        assert node.pull(address, LOGIN) == lab.id


def test_a_mirror_with_a_login_of_its_own(
    make_node: Callable[..., Node], tmp_path: Path, data: Path, lab: images.BuiltImage
) -> None:
    with docker_registry(tmp_path / "registry", data, auth=htpasswd(tmp_path)) as address:
        node = make_node()
        mirror = f'[host."http://{address}"]\n[host."http://{address}".auth]\n'
        node.hosts("upstream.invalid", mirror + f'username = "{USER}"\npassword = "{PASSWORD}"', 0o600)
        image = node.images.pull("upstream.invalid/team/app:v1", None, NEVER)
        assert image.repo_tags == ("upstream.invalid/team/app:v1",)


@pytest.mark.parametrize("auth", [LOGIN, Credentials(identity_token=PASSWORD)], ids=["login", "identity-token"])
def test_a_token(
    make_node: Callable[..., Node], tmp_path: Path, data: Path, lab: images.BuiltImage, auth: Credentials
) -> None:
    with ExitStack() as stack:
        tokens = TokenServer(tmp_path)
        stack.callback(tokens.close)
        address = stack.enter_context(docker_registry(tmp_path / "registry", data, auth=tokens.settings()))
        node = make_node()
        node.hosts(address, f'server = "http://{address}"')
        with pytest.raises(PermissionDenied):
            node.pull(address)
        assert node.pull(address, auth) == lab.id
        assert len(tokens.seen) == 2


def test_a_registry_token(make_node: Callable[..., Node], tmp_path: Path, data: Path, lab: images.BuiltImage) -> None:
    with ExitStack() as stack:
        tokens = TokenServer(tmp_path)
        stack.callback(tokens.close)
        address = stack.enter_context(docker_registry(tmp_path / "registry", data, auth=tokens.settings()))
        node = make_node()
        node.hosts(address, f'server = "http://{address}"')
        token = tokens.token("repository:team/app:pull", "test")
        assert node.pull(address, Credentials(registry_token=token)) == lab.id
        assert tokens.seen == []


def test_a_line_that_keeps_breaking_slows_a_pull_but_does_not_stop_it(
    make_node: Callable[..., Node], registry: Registry, lab: images.BuiltImage
) -> None:
    line = BadLine(registry.address, after=900_000)
    try:
        node = make_node()
        node.hosts(line.address, f'server = "http://{line.address}"')
        assert node.pull(line.address) == lab.id
        assert line.connections >= 4
    finally:
        line.close()


def test_a_line_that_falls_silent_fails_the_pull_and_leaves_nothing(
    make_node: Callable[..., Node], registry: Registry, lab: images.BuiltImage
) -> None:
    line = BadLine(registry.address, after=700_000, silent=True)
    try:
        node = make_node(progress_timeout=1.0, max_concurrent_downloads=1)
        node.hosts(line.address, f'server = "http://{line.address}"')
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"layer {lab.layers[1].digest}.*no progress for 1 s"):
            node.pull(line.address)
        assert time.monotonic() - began < 10
        assert node.left() == []
    finally:
        line.close()


def test_a_deadline_that_passes_while_layers_come_leaves_nothing(
    make_node: Callable[..., Node], registry: Registry, lab: images.BuiltImage
) -> None:
    line = BadLine(registry.address, after=700_000, silent=True)
    try:
        node = make_node()
        node.hosts(line.address, f'server = "http://{line.address}"')
        with pytest.raises(DeadlineExceeded):
            node.pull(line.address, seconds=0.7)
        assert node.left() == []
    finally:
        line.close()
