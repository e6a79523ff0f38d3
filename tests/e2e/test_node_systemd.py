"""A node's life with ForgeOne, on a host whose services are systemd's; run by ``make e2e-v2``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.cli import main as cli
from forgeone_shim.cli.node_agent import HostHands
from forgeone_shim.deadline import Deadline
from forgeone_shim.node import layout
from forgeone_shim.node.journal import Store
from forgeone_shim.node.labels import How
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import Do
from forgeone_shim.node.systemd import Systemd
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e import node_lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path("/run/systemd/system").is_dir(), reason="systemd does not run this host"),
    pytest.mark.skipif(
        Path("/usr/bin/kubelet").exists() or Path("/etc/forgeone").exists(), reason="this host is a node already"
    ),
]

FORGE = Path(sys.executable).with_name("forge")
# Where systemd sees a change only when it is told to read its units anew.
FLAGS = Path("/etc/systemd/system/kubelet.service.d/10-runtime.conf")
KUBELET = Path("/run/systemd/system/kubelet.service")
HOST = Layout(Path("/"))
SYSTEMD = Systemd(HOST)


class Node:
    """This host as a node; ``old`` is the runtime that it has."""

    def __init__(self, old: Daemon, tmp: Path) -> None:
        self.old, self.tmp = old, tmp

    def forge(self, *words: str, code: int = 0, forge: str = str(FORGE)) -> str:
        done = subprocess.run([forge, *words], check=False, capture_output=True, text=True, timeout=patient(120))
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}{_journal()}"
        return done.stdout + done.stderr

    def install(self, version: str, *more: str, broken: bool = False, code: int = 0) -> str:
        directory = self.tmp / f"{version}{'-broken' if broken else ''}"
        if not directory.exists():
            node_lab.bundle(directory, version, broken=broken)
        timeout = f"--timeout={int(patient(20 if broken else 90))}"
        return self.forge("node", "install", "--bundle", str(directory), timeout, *more, code=code)

    def status(self) -> dict[str, object]:
        done = subprocess.run([FORGE, "node", "status", "-o", "json"], check=False, capture_output=True, text=True)
        return dict(json.loads(done.stdout))


def _journal() -> str:
    words = ["journalctl", "--no-pager", "-n", "60", "-u", "forgeone*", "-u", "kubelet"]
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout


def _active(unit: str) -> bool:
    return SYSTEMD.active(unit, Deadline.after(30))


@pytest.fixture(scope="module")
def node(forgeoned: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """With a kubelet that uses the module's forgeoned, which is the old runtime here."""
    tmp = tmp_path_factory.mktemp("node")
    program = tmp / "kubelet"
    program.write_text(node_lab.KUBELET)
    program.chmod(0o755)
    FLAGS.parent.mkdir(parents=True, exist_ok=True)
    words = f"--container-runtime-endpoint=unix://{forgeoned.socket} --v=2"
    FLAGS.write_text(f'[Service]\nEnvironment="KUBELET_KUBEADM_ARGS={words}"\n')
    KUBELET.write_text(node_lab.UNIT.format(program=program))
    soon = Deadline.after(patient(60))
    SYSTEMD.reload(soon)
    SYSTEMD.job(Do.START, "kubelet.service", soon)
    made = Node(forgeoned, tmp)
    try:
        yield made
    finally:
        made.forge("node", "uninstall", "--force", "--purge")
        SYSTEMD.job(Do.STOP, "kubelet.service", Deadline.after(patient(60)))
        KUBELET.unlink()
        FLAGS.unlink()
        FLAGS.parent.rmdir()
        SYSTEMD.reload(Deadline.after(patient(60)))


@pytest.fixture(autouse=True)
def said(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    assert Store(HOST).journal() is None


def test_a_nodes_life(node: Node, busybox: str) -> None:
    before = FLAGS.read_text()
    given = node.tmp / "config.toml"
    given.write_text(f'[registry]\nconfig_path = "{node.old.config.registry.config_path}"\n')

    # A version that does not come up is undone, and the kubelet has not heard of it.
    assert "not be" not in node.install("0.0.9", f"--config={given}", broken=True, code=1)
    assert FLAGS.read_text() == before
    assert not Path(layout.CURRENT).is_symlink()
    assert not _active("forgeoned.service")

    node.install("0.1.0", f"--config={given}")
    state = node.status()
    assert (state["ready"], state["answers"], state["mode"]) == (True, "0.1.0", "beside"), state
    assert layout.SOCKET in FLAGS.read_text()
    assert layout.SOCKET in _kubelet()
    enabled = subprocess.run(["systemctl", "is-enabled", "forgeoned"], check=False, capture_output=True, text=True)
    assert enabled.stdout == "enabled\n"
    assert "nothing is to be done" in node.install("0.1.0", "--dry-run")

    # Pods go on through an upgrade, and through one that is rolled back.
    run = ("run", "-d", "--name=kept", "--engine=native", busybox, "--", "sh", "-c", "echo begun; exec sleep 1000000")
    node.forge(*run)
    node.install("0.1.1", broken=True, code=1)
    state = node.status()
    assert (state["version"], state["answers"], state["ready"]) == ("0.1.0", "0.1.0", True), state
    node.install("0.1.1")
    state = node.status()
    assert (state["version"], state["answers"], state["ready"]) == ("0.1.1", "0.1.1", True), state
    assert "Running" in node.forge("ps", "--pod=kept")
    assert "begun" in node.forge("logs", "kept")
    assert "as ever" in node.forge("exec", "kept", "--", "echo", "as", "ever")
    assert "forge/kept" in node.forge("node", "uninstall", code=1)

    # Killed while the new forgeoned starts: the next one undoes, and does it anew.
    node_lab.bundle(node.tmp / "0.1.2", "0.1.2")
    words = [str(FORGE), "node", "install", "--bundle", str(node.tmp / "0.1.2")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        assert any(line.startswith("restart forgeoned") for line in killed.stderr)
        killed.send_signal(signal.SIGKILL)
    assert Store(HOST).journal() is not None
    assert node.status()["unfinished"] == "install"
    node.install("0.1.2")
    assert node.status()["answers"] == "0.1.2"

    # As the agent has it done: by a unit of the host's own, from a copy on the host.
    words = ["node", "agent", f"--bundle={node.tmp / '0.1.2'}", f"--config={given}", f"--timeout={int(patient(90))}"]
    hands = HostHands(HOST, cli.parser().parse_args(words))
    seen = hands.look()
    assert (seen.pending, seen.ready, seen.version) == ((), True, "0.1.2"), seen
    assert "native" in seen.engines
    hands.uninstall(How.DRAIN)
    _given_back(before)
    assert hands.look().pending
    hands.install()
    assert not Path(layout.STAGING).exists()
    seen = hands.look()
    assert (seen.pending, seen.ready) == ((), True), seen
    hands.uninstall(How.REFUSE)
    _given_back(before)


def _kubelet() -> str:
    pid = SYSTEMD.main_pid("kubelet.service", Deadline.after(30))
    return Path(f"/proc/{pid}/cmdline").read_text()


def _given_back(flags: str) -> None:
    assert FLAGS.read_text() == flags
    assert layout.SOCKET not in _kubelet()
    assert not Path(layout.CURRENT).is_symlink()
    assert not Path(layout.VERSIONS).exists()
    assert not Path("/sys/class/net/forge0").exists()
    assert not Path("/run/forgeone").exists()
    assert not _active("forgeoned.service")
    assert _active("kubelet.service")


def test_a_unit_that_fails_says_so(node: Node) -> None:
    assert SYSTEMD.execute("forgeone-test.service", ["/bin/false"], Deadline.after(patient(30))) == "failed"
    assert SYSTEMD.execute("forgeone-test.service", ["/bin/true"], Deadline.after(patient(30))) == "done"
