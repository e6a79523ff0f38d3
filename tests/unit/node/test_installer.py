"""Installing and giving back, on scratch trees: everything, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, InvalidInput
from forgeone_shim.node import health, layout, versions
from forgeone_shim.node.installer import Installer, Removal
from forgeone_shim.node.journal import Store
from forgeone_shim.node.kubelet import Choice
from forgeone_shim.node.layout import Layout
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


class _KilledError(BaseException):
    """The process has ended here, and undoes nothing."""


def _steps(node: Node, **wish: object) -> int:
    directory = node.tmp / "bundle-2.0.0"
    if not directory.exists():
        node.bundle("2.0.0")
    return len(node.installer.install(str(directory), Wish(**wish), 2, NEVER, dry_run=True).steps)  # type: ignore[arg-type]


def _fail_at(monkeypatch: pytest.MonkeyPatch, node: Node, number: int, error: BaseException, *, after: bool) -> None:
    """The step of that number fails before, or after, it has been done."""
    worker = node.installer._worker
    seen = iter(range(1, 1000))
    real = type(worker)._do

    def do(self: object, step: object, deadline: Deadline) -> None:
        here = next(seen) == number
        if here and not after:
            raise error
        real(self, step, deadline)  # type: ignore[arg-type]
        if here:
            raise error

    monkeypatch.setattr(type(worker), "_do", do)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("start", ["", "1.0.0"])
def test_whichever_step_fails_all_is_as_it_was(node: Node, start: str, after: bool) -> None:
    if start:
        node.install(start)
    for number in range(1, _steps(node) + 1):
        before, record = lab.snapshot(node.root), node.store.record()
        running = set(node.services.running)
        with pytest.MonkeyPatch.context() as patch:
            _fail_at(patch, node, number, FailedPrecondition("no"), after=after)
            with pytest.raises(FailedPrecondition, match="no"):
                node.install("2.0.0")
        assert lab.snapshot(node.root) == before
        assert node.store.record() == record
        assert node.store.journal() is None
        assert node.services.running - {"forgeone-prepare.service"} == running - {"forgeone-prepare.service"}
        outcome = node.store.outcome()
        assert outcome is not None
        assert (outcome.result, outcome.reason) == ("undone", "no")
    node.install("2.0.0")
    assert node.text(layout.CURRENT + "/bin/forge") == "forge 2.0.0"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("start", ["", "1.0.0"])
def test_what_a_killed_run_has_begun_is_undone_by_the_next(node: Node, start: str, after: bool) -> None:
    if start:
        node.install(start)
    for number in range(1, _steps(node) + 1):
        before, record = lab.snapshot(node.root), node.store.record()
        with pytest.MonkeyPatch.context() as patch:
            _fail_at(patch, node, number, _KilledError(), after=after)
            patch.setattr(type(node.installer._worker), "undo", lambda *_: None)
            with pytest.raises(_KilledError):
                node.install("2.0.0")
        assert node.store.journal() is not None
        assert node.installer.recover()
        assert lab.snapshot(node.root) == before
        assert node.store.record() == record
        assert not node.installer.recover()


def test_a_run_that_was_killed_at_its_very_end_is_finished(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(node.installer._worker), "finish", lambda *_: (_ for _ in ()).throw(_KilledError()))
        with pytest.raises(_KilledError):
            node.install()
    assert node.store.record() is None
    node.install()
    record = node.store.record()
    assert record is not None
    assert record.version == "1.0.0"
    assert "restart forgeoned.service" in node.services.asked


@pytest.mark.parametrize("after", [False, True])
def test_an_uninstallation_that_fails_leaves_the_installation(node: Node, after: bool) -> None:
    node.install()
    steps = len(node.installer.uninstall(Removal(), NEVER, dry_run=True).steps)
    for number in range(1, steps + 1):
        before = lab.snapshot(node.root)
        with pytest.MonkeyPatch.context() as patch:
            _fail_at(patch, node, number, FailedPrecondition("no"), after=after)
            with pytest.raises(FailedPrecondition, match="no"):
                node.uninstall()
        assert lab.snapshot(node.root) == before
        assert node.services.running >= {"kubelet.service", "forgeoned.service"}
    node.uninstall()
    assert not (node.root / "opt").exists() or not any((node.root / "opt").iterdir())


def test_what_cannot_be_undone_is_told_and_tried_again(node: Node) -> None:
    node.runtimes.unready = "no crun"
    node.services.fails = {"stop forgeoned.service"}
    with pytest.raises(InternalError, match=r"no crun, and it could not be undone: .*stop forgeoned"):
        node.install()
    assert node.store.journal() is not None
    assert node.store.outcome().result == "stuck"  # type: ignore[union-attr]
    node.services.fails, node.runtimes.unready = set(), ""
    node.install()
    assert node.store.journal() is None


def test_an_upgrade_keeps_the_version_before_and_its_kubelet_is_left_alone(node: Node) -> None:
    node.install("1.0.0")
    node.services.asked.clear()
    node.install("2.0.0")
    assert "restart kubelet.service" not in node.services.asked
    assert "restart forgeoned.service" in node.services.asked
    node.install("3.0.0")
    assert versions.present(node.layout) == ("2.0.0", "3.0.0")
    node.uninstall()
    assert f"unix://{lab.OLD_SOCKET}" in node.text("/var/lib/kubelet/kubeadm-flags.env")


def test_a_version_that_a_process_runs_from_stays(node: Node) -> None:
    node.install("1.0.0")
    process = node.root / "proc" / "4711"
    process.mkdir(parents=True)
    (process / "exe").symlink_to("/opt/forgeone/versions/1.0.0/bin/conmon (deleted)")
    node.install("2.0.0")
    node.install("3.0.0", keep=1)
    assert versions.present(node.layout) == ("1.0.0", "3.0.0")


def test_a_bundle_that_is_not_what_its_manifest_says_is_not_taken(node: Node) -> None:
    before = lab.snapshot(node.root)
    node.bundle("1.0.0", broken=True)
    with pytest.raises(InternalError, match=r"bin/forgeoned is not what manifest\.json says"):
        node.install("1.0.0")
    assert {path: what for path, what in lab.snapshot(node.root).items() if "/versions/" not in path} == before
    assert versions.present(node.layout) == ()


def test_a_version_that_was_changed_on_the_node_is_laid_out_again(node: Node) -> None:
    node.install()
    (node.root / "opt/forgeone/versions/1.0.0/bin/forge").write_text("tampered")
    node.install()
    assert node.text(layout.CURRENT + "/bin/forge") == "forge 1.0.0"


def test_a_version_that_others_could_change_is_laid_out_again_where_it_is(node: Node) -> None:
    place = lab.bundle(node.root / "opt/forgeone/versions/1.0.0", "1.0.0")
    (place / "bin").chmod(0o775)
    node.installer.install(str(place), Wish(), 2, NEVER)
    assert (place / "bin").stat().st_mode & 0o777 == 0o755
    assert node.text(layout.CURRENT + "/bin/forge") == "forge 1.0.0"


@pytest.mark.parametrize("package", ["forgeone", "forgeone-microvm"])
def test_a_version_of_a_package_stays_the_packages(package: str, node: Node) -> None:
    place = lab.bundle(node.root / "opt/forgeone/versions/1.0.0", "1.0.0")
    (node.root / "opt/forgeone/current").symlink_to("versions/1.0.0")
    unit = "/lib/systemd/system/forgeoned.service"
    listed = "/.\n/opt/forgeone/versions/1.0.0/bin\n"
    lab.write(node.root, {f"/var/lib/dpkg/info/{package}.list": listed, unit: "[Service]\n"})
    enabled = node.root / "etc/systemd/system/multi-user.target.wants/forgeoned.service"
    enabled.parent.mkdir(parents=True)
    enabled.symlink_to(unit)
    before = lab.snapshot(node.root)
    node.installer.install(str(place), Wish(), 2, NEVER)
    assert not (node.root / "etc/systemd/system/forgeoned.service").exists()
    prepare = node.text("/etc/systemd/system/forgeone-prepare.service")
    assert "/opt/forgeone/current/bin/forge node prepare" in prepare
    node.uninstall()
    assert lab.snapshot(node.root) == before


def test_pods_keep_a_node_from_being_given_back_until_they_are_stopped(node: Node) -> None:
    node.install()
    theirs, ours = lab.pod("theirs"), lab.pod("ours")
    node.runtimes.sandboxes = {"containerd.sock": [theirs], "forgeone.sock": [theirs, ours]}
    with pytest.raises(FailedPrecondition, match="ForgeOne runs 1 pods here: default/ours"):
        node.uninstall()
    assert node.store.outcome().result == "refused"  # type: ignore[union-attr]
    node.uninstall(drain=True)
    assert node.runtimes.removed == [("forgeone.sock", "ours", 30)]
    # The kubelet must not start them anew here.
    asked = node.services.asked
    assert asked.index("restart kubelet.service", 4) < asked.index("stop forgeoned.service")


def test_in_another_runtimes_place_its_pods_are_stopped_while_the_kubelet_is(node: Node) -> None:
    node.runtimes.sandboxes = {"containerd.sock": [lab.pod("web")]}
    with pytest.raises(FailedPrecondition, match=r"runs 1 pods: default/web.*--drain"):
        node.install(mode="replace")
    node.install(mode="replace", drain=True)
    assert node.runtimes.removed == [("containerd.sock", "web", 30)]
    assert node.services.asked[-2:] == ["stop kubelet.service", "restart kubelet.service"]
    assert not (node.root / "etc/forgeone/config.toml").exists()


def test_a_kubelet_that_does_not_run_is_not_started(node: Node) -> None:
    node.services.running.clear()
    node.install()
    assert "forgeone.sock" in node.text("/var/lib/kubelet/kubeadm-flags.env")
    assert node.services.running == {"forgeoned.service", "forgeone-prepare.service"}
    node.uninstall()
    assert node.text("/var/lib/kubelet/kubeadm-flags.env") == lab.KUBEADM_FLAGS
    assert not node.services.running


def test_without_systemd_files_alone_are_written(node: Node) -> None:
    before = lab.snapshot(node.root)
    node.install(service=False)
    assert node.services.asked == []
    assert (node.root / "etc/systemd/system/multi-user.target.wants/forgeoned.service").is_symlink()
    assert "forgeone.sock" in node.text("/var/lib/kubelet/kubeadm-flags.env")
    node.uninstall(service=False)
    assert lab.snapshot(node.root) == before


def test_a_node_without_a_kubelet_gets_forgeone_alone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (node.root / "usr/lib/systemd/system/kubelet.service").unlink()
    with pytest.raises(ForgeError, match=r"kubelet\.service"):
        node.install()
    node.install(choice=Choice.NONE)
    record = node.store.record()
    assert record is not None
    assert (record.mode, record.upstream, record.edits) == ("replace", "", ())


def test_beside_which_runtime_has_to_be_known(node: Node) -> None:
    with pytest.raises(InvalidInput, match="nothing tells which runtime"):
        node.install(choice=Choice.NONE, mode="beside")


def test_a_node_that_was_made_with_forgeone_beside_another_runtime_stays_so(node: Node) -> None:
    flags = lab.KUBEADM_FLAGS.replace(lab.OLD_SOCKET, layout.SOCKET)
    config = f'[upstream]\nsocket = "{lab.OLD_SOCKET}"\n'
    lab.write(node.root, {"/var/lib/kubelet/kubeadm-flags.env": flags, layout.CONFIG: config})
    node.install()
    record = node.store.record()
    assert record is not None
    assert (record.mode, record.upstream, record.edits, record.config) == ("beside", lab.OLD_SOCKET, (), None)
    with pytest.raises(FailedPrecondition, match="it was not forge node that told it to"):
        node.uninstall()


def test_directories_that_are_not_forgeones_alone_are_not_removed(node: Node) -> None:
    node.install(config=b'root = "/srv"\nstate = "/run"\n')
    lab.write(node.root, {"/srv/else": "x", "/run/else": "x"})
    node.uninstall(purge=True)
    assert node.text("/srv/else") + node.text("/run/else") == "xx"
    assert not (node.root / "var/lib/forgeone-node").exists()


def test_a_unit_of_somebody_else_is_not_written_over(node: Node) -> None:
    lab.write(node.root, {"/etc/systemd/system/forgeoned.service": "[Service]\nExecStart=/x\n"})
    with pytest.raises(FailedPrecondition, match="was not written by forge node"):
        node.install()


def test_another_change_to_the_kubelets_flags_survives_an_uninstallation(node: Node) -> None:
    node.install()
    path = node.root / "var/lib/kubelet/kubeadm-flags.env"
    path.write_text(path.read_text().replace("10.0.0.7", "10.0.0.8"))
    node.uninstall()
    assert path.read_text() == lab.KUBEADM_FLAGS.replace("10.0.0.7", "10.0.0.8")


def test_a_kubelet_that_was_pointed_elsewhere_since_is_left_there(node: Node) -> None:
    node.install()
    path = node.root / "var/lib/kubelet/kubeadm-flags.env"
    path.write_text(lab.KUBEADM_FLAGS.replace("containerd", "crio"))
    node.services.asked.clear()
    node.uninstall()
    assert path.read_text() == lab.KUBEADM_FLAGS.replace("containerd", "crio")
    assert "restart kubelet.service" not in node.services.asked


def test_only_one_works_on_a_node_at_a_time(node: Node) -> None:
    with node.store.locked():
        with pytest.raises(FailedPrecondition, match="another forge node is at work"):
            node.install()
        assert not node.installer.recover()


def test_a_dry_run_changes_nothing(node: Node) -> None:
    before = lab.snapshot(node.root)
    assert _steps(node) == 17
    assert lab.snapshot(node.root) == before
    assert not (node.root / layout.STATE[1:]).exists()


def test_links_of_the_node_are_taken_as_the_node_takes_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "data/kubelet").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/kubelet").symlink_to("/data/kubelet")
    (root / "loop").symlink_to("/loop")
    node = Layout(root)
    assert node.at("/var/lib/kubelet/config.yaml") == root / "data/kubelet/config.yaml"
    assert node.at("/var/lib/kubelet") == root / "var/lib/kubelet"
    assert node.at("/var/lib/kubelet", follow=True) == root / "data/kubelet"
    assert node.at("/../../etc") == root / "etc"
    with pytest.raises(InvalidInput, match="go round"):
        node.at("/loop/x")
