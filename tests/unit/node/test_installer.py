"""Installing and giving back, on scratch trees: everything, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.node import health, layout
from forgeone_shim.node.installer import Installer, Removal
from forgeone_shim.node.journal import Store
from forgeone_shim.node.plan import Wish
from tests.unit.node import lab
from tests.unit.node.lab import Runtimes, Services

NEVER = Deadline()


class Node:
    """A node with all that installs on it."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.layout = lab.node(tmp / "root")
        self.root = self.layout.root
        self.services, self.runtimes = Services(), Runtimes()
        self.installer = Installer(self.layout, self.services, self.runtimes)
        self.store = Store(self.layout)

    def bundle(self, version: str, *, broken: bool = False) -> str:
        return str(lab.bundle(self.tmp / f"bundle-{version}", version, broken=broken))

    def install(self, version: str = "1.0.0", keep: int = 2, **wish: object) -> None:
        directory = self.tmp / f"bundle-{version}"
        if not directory.exists():
            self.bundle(version)
        self.installer.install(str(directory), Wish(**wish), keep, NEVER)  # type: ignore[arg-type]

    def uninstall(self, **removal: bool) -> None:
        self.installer.uninstall(Removal(**removal), NEVER)

    def text(self, path: str) -> str:
        return (self.root / path[1:]).read_text()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(health, "_SETTLED", 0.0)
    return Node(tmp_path)


def test_an_installation_is_in_use_and_an_uninstallation_leaves_what_was(node: Node) -> None:
    before = lab.snapshot(node.root)
    node.install()
    assert node.text(layout.CURRENT + "/bin/forgeoned") == "forgeoned 1.0.0"
    assert "endpoint=unix:///run/forgeone/forgeone.sock --node-ip=10.0.0.7" in node.text(
        "/var/lib/kubelet/kubeadm-flags.env"
    )
    assert node.text(layout.CONFIG) == f'[upstream]\nsocket = "{lab.OLD_SOCKET}"\n'
    assert node.services.asked == [
        "reload",
        "restart forgeone-prepare.service",
        "restart forgeoned.service",
        "restart kubelet.service",
    ]
    node.uninstall()
    assert lab.snapshot(node.root) == before
    assert node.store.record() is None
    assert node.services.running == {"kubelet.service"}


def test_a_second_installation_has_nothing_to_do(node: Node) -> None:
    node.install()
    node.services.asked.clear()
    before = lab.snapshot(node.root)
    node.install()
    assert node.services.asked == []
    assert lab.snapshot(node.root) == before
