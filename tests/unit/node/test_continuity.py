"""Pods and a working runtime, whatever fails: nothing runs twice, nothing is left behind, no kubelet is without one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, Unavailable
from forgeone_shim.node import health, layout, versions
from tests.unit.node import lab
from tests.unit.node.test_installer import Node

FLAGS = "/var/lib/kubelet/kubeadm-flags.env"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(health, "_SETTLED", 0.0)
    return Node(tmp_path)


def _unwell(node: Node, monkeypatch: pytest.MonkeyPatch, socket: str) -> list[list[str]]:
    """The kubelet is not healthy, after it has started a pod on a socket; what runs whenever it is started."""
    started: list[list[str]] = []

    def stays(*_: object) -> None:
        node.runtimes.sandboxes.setdefault(socket, []).append(lab.pod("web"))
        raise FailedPrecondition("the kubelet does not stay up")

    job = node.services.job

    def noted(do: object, unit: str, deadline: object) -> None:
        if unit == "kubelet.service" and str(do) != "stop":
            started.append(sorted(name for name, pods in node.runtimes.sandboxes.items() if pods))
        job(do, unit, deadline)  # type: ignore[arg-type]

    monkeypatch.setattr(node.services, "job", noted)
    monkeypatch.setattr(health, "stays", stays)
    return started


@pytest.mark.parametrize("mode", ["beside", "replace"])
def test_pods_that_a_kubelet_has_started_before_it_failed_run_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    node.runtimes.sandboxes = {"containerd.sock": [], "forgeone.sock": []}
    started = _unwell(node, monkeypatch, "forgeone.sock")
    with pytest.raises(FailedPrecondition, match="does not stay up"):
        node.install(mode=mode)
    assert started == [[], []]
    assert node.services.running == {"kubelet.service", "forgeone-prepare.service"}
    assert node.text(FLAGS) == lab.KUBEADM_FLAGS


def test_pods_of_a_kubelet_that_stays_where_it_is_go_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.install(mode="replace")
    node.runtimes.sandboxes = {"containerd.sock": [lab.pod("stray")], "forgeone.sock": [lab.pod("db")]}
    monkeypatch.setattr(health, "stays", lambda *_: (_ for _ in ()).throw(FailedPrecondition("does not stay up")))
    with pytest.raises(FailedPrecondition, match="does not stay up"):
        node.install(mode="replace", drain=True)
    assert node.runtimes.removed == [("containerd.sock", "stray", 30)]


def test_a_kubelet_that_is_given_back_starts_no_pod_that_still_runs(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install(mode="replace")
    node.runtimes.sandboxes = {"forgeone.sock": [lab.pod("db")]}
    with pytest.MonkeyPatch.context() as patch:
        started = _unwell(node, patch, "containerd.sock")
        with pytest.raises(FailedPrecondition, match="does not stay up"):
            node.uninstall(drain=True)
    assert started == [[], []]
    assert layout.SOCKET in node.text(FLAGS)
    started = _unwell(node, monkeypatch, "none")
    monkeypatch.setattr(health, "stays", lambda *_: None)
    node.uninstall(drain=True)
    assert started == [[]]
    assert node.text(FLAGS) == lab.KUBEADM_FLAGS


def test_a_forgeoned_that_does_not_answer_keeps_no_kubelet_from_coming_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    _unwell(node, monkeypatch, "forgeone.sock")
    node.runtimes.silent = {"forgeone.sock"}
    with pytest.raises(FailedPrecondition, match="does not stay up"):
        node.install()
    assert "kubelet.service" in node.services.running
    assert node.store.journal() is None


def test_a_kubelet_is_not_pointed_back_to_a_forgeoned_that_does_not_start(node: Node) -> None:
    node.install()
    node.services.fails = {"stop forgeone-prepare.service", "restart forgeoned.service"}
    with pytest.raises(InternalError, match="could not be undone"):
        node.uninstall()
    assert node.text(FLAGS) == lab.KUBEADM_FLAGS
    assert "kubelet.service" in node.services.running
    node.services.fails = set()
    node.uninstall()
    assert not node.store.journal()


def test_forgeoned_is_not_taken_from_a_kubelet_whose_file_cannot_be_put_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        write = type(node.installer._worker)._write

        def refused(self: object, path: str, *content: object, **more: object) -> None:
            if path == FLAGS:
                raise OSError(28, "No space left on device")
            write(self, path, *content, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(type(node.installer._worker), "_write", refused)
        raise FailedPrecondition("the kubelet does not stay up")

    monkeypatch.setattr(health, "stays", full)
    with pytest.raises(InternalError, match="No space left"):
        node.install()
    assert layout.SOCKET in node.text(FLAGS)
    assert "forgeoned.service" in node.services.running
    assert node.text(layout.CURRENT + "/bin/forgeoned") == "forgeoned 1.0.0"


def test_a_kubelet_whose_unit_was_changed_is_restarted_as_it_is_now(node: Node) -> None:
    dropin = "/etc/systemd/system/kubelet.service.d/10-containerd.conf"
    flag = f"--container-runtime-endpoint=unix://{lab.OLD_SOCKET}"
    lab.write(node.root, {FLAGS: "\n", dropin: f'[Service]\nEnvironment="KUBELET_EXTRA_ARGS={flag}"\n'})
    node.install()
    assert layout.SOCKET in node.text(dropin)
    assert node.services.asked[-2:] == ["reload", "restart kubelet.service"]
    node.services.asked.clear()
    node.uninstall()
    assert node.services.asked[:2] == ["reload", "restart kubelet.service"]


def test_a_forgeoned_that_does_not_answer_is_removed_by_force_alone(node: Node) -> None:
    node.install()
    node.runtimes.silent = {"forgeone.sock"}
    with pytest.raises(Unavailable):
        node.uninstall(drain=True)
    node.uninstall(force=True)
    assert node.store.record() is None


def test_pods_whose_forgeoned_does_not_run_are_not_left_behind(node: Node) -> None:
    node.install()
    node.services.running.discard("forgeoned.service")
    process = node.root / "proc" / "4711"
    process.mkdir(parents=True)
    (process / "exe").symlink_to("/opt/forgeone/versions/1.0.0/bin/conmon")
    with pytest.raises(FailedPrecondition, match=r"4711 \(conmon\)") as refused:
        node.uninstall(drain=True)
    assert "systemctl start forgeoned" in refused.value.fix
    node.uninstall(force=True)


def test_programs_of_the_same_name_elsewhere_are_not_the_nodes(node: Node) -> None:
    node.install()
    node.services.running.discard("forgeoned.service")
    process = node.root / "proc" / "4711"
    process.mkdir(parents=True)
    # As in a container, whose image has its own.
    elsewhere = node.tmp / "opt/forgeone/versions/1.0.0/bin/forge"
    lab.write(node.tmp, {"/opt/forgeone/versions/1.0.0/bin/forge": ""})
    (process / "exe").symlink_to(elsewhere)
    node.uninstall()


def test_a_pod_that_came_after_the_look_refuses_an_uninstallation(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.install()
    late = lab.pod("late")
    monkeypatch.setattr(
        health, "stays", lambda *_: node.runtimes.sandboxes.setdefault("forgeone.sock", []).append(late)
    )
    with pytest.raises(FailedPrecondition, match="default/late"):
        node.uninstall()
    assert node.runtimes.removed == []
    assert layout.SOCKET in node.text(FLAGS)


def test_a_pod_that_came_after_the_look_is_not_stopped_for_another_runtime(node: Node) -> None:
    node.services.on["stop kubelet.service"] = lambda: node.runtimes.sandboxes.update(
        {"containerd.sock": [lab.pod("late")]}
    )
    with pytest.raises(FailedPrecondition, match="default/late"):
        node.install(mode="replace")
    assert node.runtimes.removed == []
    assert "kubelet.service" in node.services.running


def test_a_node_whose_runtime_is_not_there_gets_forgeone_in_its_place(node: Node) -> None:
    socket = node.root / lab.OLD_SOCKET[1:]
    node.runtimes.silent = {"containerd.sock"}
    with pytest.raises(Unavailable):
        node.install(mode="replace")
    socket.unlink()
    node.install(mode="replace")
    assert layout.SOCKET in node.text(FLAGS)


def test_what_was_laid_out_again_before_is_not_put_back(node: Node) -> None:
    forge = node.root / "opt/forgeone/versions/1.0.0/bin/forge"
    node.install()
    forge.write_text("first")
    node.install()
    forge.write_text("second")
    node.runtimes.unready = "no crun"
    with pytest.raises(ForgeError, match="no crun"):
        node.install()
    assert forge.read_text() == "second"
    node.runtimes.unready = ""
    node.install()
    assert forge.read_text() == "forge 1.0.0"
    assert versions.present(node.layout) == (".1.0.0.old", "1.0.0")


def test_pods_are_stopped_side_by_side(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.install()
    both = threading.Barrier(2, timeout=10)
    node.runtimes.sandboxes = {"forgeone.sock": [lab.pod("one"), lab.pod("two")]}
    remove = node.runtimes.remove

    def removed(*arguments: object) -> None:
        both.wait()
        remove(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(node.runtimes, "remove", removed)
    node.uninstall(drain=True)
    assert {name for _, name, _ in node.runtimes.removed} == {"one", "two"}
