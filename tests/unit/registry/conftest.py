from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from forgeone_shim.config.model import RegistryConfig
from forgeone_shim.registry.service import Audience, ImageService
from forgeone_shim.state.store import StateStore

from .layers_double import DirectoryLayers
from .registry_double import Contents, FakeRegistry


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    yield server
    server.close()


@pytest.fixture
def another() -> Iterator[FakeRegistry]:
    """A second host."""
    server = FakeRegistry()
    yield server
    server.close()


@pytest.fixture
def contents(registry: FakeRegistry) -> Contents:
    return registry.contents


class Node:
    """An image service with everything below it, in one folder."""

    def __init__(self, root: Path, *, pinned: Sequence[str] = (), **settings: object) -> None:
        self.root = root
        self.certs = root / "certs.d"
        self.in_use: set[str] = set()
        self.audience: Audience | None = None
        self.layers = DirectoryLayers(root / "layers")
        self.store = StateStore(root / "forgeone.db")
        self.config = RegistryConfig(
            **{"config_path": str(self.certs), "platform": "linux/amd64", "progress_timeout": 10.0, **settings}  # type: ignore[arg-type]
        )
        self.images = self.service(pinned)

    def service(self, pinned: Sequence[str] = ()) -> ImageService:
        return ImageService(
            self.store,
            self.root,
            self.config,
            self.layers,
            pinned=pinned,
            layers_in_use=lambda: set(self.in_use),
            audience=self.audience,
            abi=(1, 0),
        )

    def hosts(self, registry: str, text: str, mode: int = 0o644) -> None:
        folder = self.certs / registry
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(text)
        (folder / "hosts.toml").chmod(mode)

    def plain(self, *registries: FakeRegistry) -> None:
        for registry in registries:
            self.hosts(registry.host, f'server = "{registry.url}"\n')

    def left_over(self) -> list[str]:
        """Everything of images below the root, but the lock."""
        return [
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.name != "lock"
            and not path.name.startswith(("forgeone.db", "sha256"))
            and path not in (self.root / "images", self.root / "layers", self.root / "blobs")
            and self.certs not in (path, *path.parents)
        ]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(**settings: object) -> Node:
        nodes.append(Node(tmp_path / f"node{len(nodes)}", **settings))  # type: ignore[arg-type]
        return nodes[-1]

    yield make
    for node in nodes:
        node.images.close()
        node.store.close()


@pytest.fixture
def node(make_node: Callable[..., Node], registry: FakeRegistry) -> Node:
    made = make_node()
    made.plain(registry)
    return made
