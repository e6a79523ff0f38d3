"""``forge node`` on a scratch tree, from its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.base import Problem
from forgeone_shim.cli import doctor, node_agent, node_status
from forgeone_shim.cli import main as cli
from forgeone_shim.cli.host import Check, Finding
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.node import layout, state
from forgeone_shim.node.labels import How
from forgeone_shim.node.layout import Layout
from tests.unit.node import lab


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    lab.node(tmp_path / "root")
    return [f"--host-root={tmp_path / 'root'}"]


def _bundle(tmp_path: Path, version: str = "1.0.0") -> str:
    return f"--bundle={lab.bundle(tmp_path / version, version)}"


def test_a_plan_is_shown_before_anything_is_done(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    install = ["node", "install", *words, _bundle(tmp_path), "--service=none"]
    assert cli.main([*install, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "change /var/lib/kubelet/kubeadm-flags.env" in shown.out
    assert "let /opt/forgeone/current lead to versions/1.0.0" in shown.out
    assert shown.err == ""
    assert cli.main([*install, "--dry-run", "-o", "json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert steps[0] == {
        "step": "tree",
        "source": str(tmp_path / "1.0.0"),
        "version": "1.0.0",
        "digest": steps[0]["digest"],
        "replaces": False,
    }
    # What is in files may be long, or nobody's business.
    assert {"step": "file", "path": "/var/lib/kubelet/kubeadm-flags.env", "mode": 0o644} in steps
    assert not (tmp_path / "root/opt").exists()


def test_a_node_is_installed_looked_at_and_given_back(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = lab.snapshot(tmp_path / "root")
    assert cli.main(["node", "install", *words, _bundle(tmp_path), "--service=none"]) == 0
    done = capsys.readouterr()
    assert done.out == "ForgeOne 1.0.0 is installed\n"
    assert "lay out version 1.0.0" in done.err
    assert cli.main(["node", "status", *words]) == 1
    shown = capsys.readouterr().out
    assert "1.0.0 (beside /run/containerd/containerd.sock)" in shown
    assert "no answer" in shown
    assert cli.main(["node", "status", *words, "--quiet"]) == 1
    assert capsys.readouterr().out == ""
    assert cli.main(["node", "status", *words, "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["ready"], found["kubelet"]) == (
        "1.0.0",
        False,
        "unix:///run/forgeone/forgeone.sock",
    )
    assert found["last"] == "install done"
    assert cli.main(["node", "uninstall", *words, "--service=none"]) == 0
    assert capsys.readouterr().out == "ForgeOne is uninstalled\n"
    assert lab.snapshot(tmp_path / "root") == before
    assert cli.main(["node", "uninstall", *words, "--service=none", "--purge"]) == 0
    assert capsys.readouterr().out == "forge node has installed nothing here\n"


def test_another_version_that_runs_is_not_the_one_asked_for(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_status, "condition", lambda *_: ("1.0.0", ""))
    assert cli.main(["node", "install", *words, _bundle(tmp_path), "--service=none"]) == 0
    assert cli.main(["node", "status", *words, "-q", f"--bundle={tmp_path / '1.0.0'}"]) == 0
    assert cli.main(["node", "status", *words, "-q"]) == 0
    # An upgrade that had to be taken back.
    assert cli.main(["node", "status", *words, "-q", _bundle(tmp_path, "2.0.0")]) == 1


def test_drift_is_told(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "install", *words, _bundle(tmp_path), "--service=none"]) == 0
    root = tmp_path / "root"
    # An upgrade by kubeadm writes them anew.
    (root / "var/lib/kubelet/kubeadm-flags.env").write_text(lab.KUBEADM_FLAGS)
    (root / "etc/systemd/system/forgeoned.service").unlink()
    (root / "opt/forgeone/current").unlink()
    capsys.readouterr()
    assert cli.main(["node", "status", *words, "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["drift"] == [
        "/opt/forgeone/current does not lead to versions/1.0.0",
        "/etc/systemd/system/forgeoned.service is gone",
        f"the kubelet is to use unix://{lab.OLD_SOCKET}",
    ]
    assert cli.main(["node", "install", *words, f"--bundle={tmp_path / '1.0.0'}", "--service=none"]) == 0
    capsys.readouterr()
    assert cli.main(["node", "status", *words, "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["drift"] == []


def test_engines_are_those_whose_pods_the_host_can_run(tmp_path: Path) -> None:
    node = lab.node(tmp_path / "root")
    assert state.engines(node) == ()
    checks = [
        Check("cgroups"),
        Check("engine native", (Finding(Problem("slow", "", fatal=False)),)),
        Check("engine wasm", absent=True),
        Check("engine microvm", (Finding(Problem("no QEMU", "", fatal=False, unusable=True)),)),
    ]
    lab.write(node.root, {layout.FINDINGS: json.dumps(doctor.report(checks))})
    assert state.engines(node) == ("native",)
    lab.write(node.root, {layout.FINDINGS: '{"checks": 7}'})
    assert state.engines(node) == ()


def test_what_is_wrong_with_a_command_is_said(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["node", "install", *words, "--service=none"]) == 1
    assert "this forge does not run from a bundle" in capsys.readouterr().err
    assert cli.main(["node", "install", *words, f"--bundle={tmp_path}", "--service=none"]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert cli.main(["node", "install", *words, "--config=/none"]) == 2
    assert cli.main(["node", "status", "--host-root=/none"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["node", "install", "--keep=0"])
    assert cli.main(["node", "install", *words, _bundle(tmp_path)]) == 1
    assert "there is no systemd" in capsys.readouterr().err


def test_the_agent_has_to_know_where_it_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "agent", *words, "--namespace=x"]) == 2
    assert "--node: is missing" in capsys.readouterr().err


def test_a_node_that_another_run_keeps_is_not_given_back(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["node", "install", *words, _bundle(tmp_path), "--service=none"]) == 0
    hands = node_agent.HostHands(Layout(tmp_path / "root"), cli.parser().parse_args(["node", "agent", *words]))
    running, joined = [True], list[str]()
    monkeypatch.setattr(hands._systemd, "active", lambda *_: running.pop() if running else False)
    monkeypatch.setattr(hands._systemd, "join", lambda unit, _: joined.append(unit))
    monkeypatch.setattr(hands._systemd, "execute", lambda *_: "done")
    with pytest.raises(FailedPrecondition, match="installed still"):
        hands.uninstall(How.DRAIN)
    assert joined == [layout.INSTALLING_UNIT]
