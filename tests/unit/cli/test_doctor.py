from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.base import Problem
from forgeone_shim.cli import doctor, host
from forgeone_shim.cli import main as cli
from forgeone_shim.cli.host import Check, Finding, filesystem_of, hugetlb_trap
from forgeone_shim.config.model import Config, SignaturesConfig
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode

CRUN = Finding(Problem("crun is missing", "it runs containers", "apt-get install -y crun"))
CONMON = Finding(Problem("conmon is missing", "it watches them", "apt-get install -y conmon crun"))
NOTE = Finding(Problem("wasm is missing", "no wasm pods", fatal=False))


def look_finds(monkeypatch: pytest.MonkeyPatch, *rounds: list[Check]) -> None:
    answers = iter(rounds)
    monkeypatch.setattr(host, "look", lambda _: next(answers))


def test_the_report_ends_with_commands_to_copy() -> None:
    text = doctor.render([Check("cgroups"), Check("engine native", (CRUN, CONMON)), Check("x", (NOTE,))], colour=False)
    assert text.splitlines() == [
        "ok    cgroups",
        "FAIL  engine native",
        "      crun is missing: it runs containers",
        "      conmon is missing: it watches them",
        "note  x",
        "      wasm is missing: no wasm pods",
        "",
        "to mend it, as root:",
        "  apt-get install -y conmon crun",
    ]


def test_what_is_only_better_is_told_apart() -> None:
    slow = Finding(Problem("slow", "each start takes longer", "mount -o remount,fast /x", fatal=False))
    lines = doctor.render([Check("engine native", (CRUN, slow))], colour=False).splitlines()
    assert lines[-5:] == [
        "to mend it, as root:",
        "  apt-get install -y crun",
        "",
        "not needed, yet better, as root:",
        "  mount -o remount,fast /x",
    ]


@pytest.mark.parametrize(("findings", "code"), [((), 0), ((NOTE,), 0), ((CRUN,), 1)])
def test_only_what_is_fatal_fails(
    findings: tuple[Finding, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look_finds(monkeypatch, [Check("x", findings)])
    assert cli.main(["doctor", "-o", "json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is not bool(code)
    assert len(report["checks"][0]["problems"]) == len(findings)


def test_fix_mends_and_looks_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    mendable = Finding(Problem("no overlay", "roots are overlays", "modprobe overlay"), lambda: done.append("x"))
    look_finds(monkeypatch, [Check("overlayfs", (mendable,))], [Check("overlayfs")])
    assert cli.main(["doctor", "--fix", "--quiet"]) == 0
    assert done == ["x"]
    assert capsys.readouterr() == ("", "done: modprobe overlay\n")


def test_a_fix_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(1, "Operation not permitted")

    look_finds(monkeypatch, [Check("x", (Finding(Problem("a", "b", "modprobe c"), fail),))])
    assert cli.main(["doctor", "--fix"]) == 1
    assert capsys.readouterr().err == "failed: modprobe c: Operation not permitted\n"


PROC_CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t1\t9\t1\nhugetlb\t0\t1\t{}\n"


@pytest.mark.parametrize(
    ("mode", "mounted", "enabled", "trapped"),
    [
        (Mode.HYBRID, False, 1, True),
        (Mode.V1, False, 1, True),
        (Mode.HYBRID, True, 1, False),
        (Mode.HYBRID, False, 0, False),
        (Mode.V2, False, 1, False),
    ],
)
def test_the_hugetlb_trap_is_one_of_v1_layouts_only(mode: Mode, mounted: bool, enabled: int, trapped: bool) -> None:
    v1 = {"memory": "/sys/fs/cgroup/memory"} | ({"hugetlb": "/sys/fs/cgroup/hugetlb"} if mounted else {})
    found = CgroupHost(mode=mode, driver=Driver.CGROUPFS, v1={} if mode is Mode.V2 else v1, unified="/sys/fs/cgroup")
    assert hugetlb_trap(found, PROC_CGROUPS.format(enabled)) is trapped


MOUNTINFO = """\
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 0:20 / /run rw shared:1 - tmpfs tmpfs rw
3 1 0:21 / /var/lib/my\\040root rw - overlay overlay rw
4 2 0:22 / /run rw - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"), [("/var/lib", "ext4"), ("/var/lib/my root/x", "overlay"), ("/run/x", "ext4"), ("/runx", "ext4")]
)
def test_the_filesystem_of_a_path_is_that_of_its_nearest_mount(path: str, kind: str) -> None:
    assert filesystem_of(Path(path), MOUNTINFO) == kind


def test_a_file_of_classes_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    assert host._classes("") == ()
    file = tmp_path / "blockio.yaml"
    [missing] = host._classes(str(file))
    assert "No such file" in missing.problem.what
    file.write_text("Classes: {a: [{Weight: 1}]}")
    [bad] = host._classes(str(file))
    assert "Weight" in bad.problem.what
    assert not bad.problem.fatal
    file.write_text("Classes: {a: [{Weight: 100}]}")
    assert host._classes(str(file)) == ()


def test_a_key_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    assert host._package_keys(str(tmp_path / "none")) == ()
    (tmp_path / "bad.pem").write_text("no key")
    (finding,) = host._package_keys(str(tmp_path))
    assert "bad.pem" in finding.problem.what
    assert not finding.problem.fatal


def test_policies_about_images_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    assert host._signatures(SignaturesConfig()) == ()
    (tmp_path / "policy.json").write_text("{}")
    (finding,) = host._signatures(SignaturesConfig(policy=str(tmp_path / "policy.json")))
    assert "policy.json" in finding.problem.what
    assert finding.problem.fatal
    (tmp_path / "programs").mkdir(mode=0o755)
    (finding,) = host._signatures(SignaturesConfig(verifiers_dir=str(tmp_path / "programs")))
    assert "it is empty" in finding.problem.what


def test_selinux_without_labels_for_containers_is_told(tmp_path: Path) -> None:
    assert host._labels("auto", tmp_path, tmp_path) == ()
    (tmp_path / "enforce").write_text("1")
    assert host._labels("off", tmp_path, tmp_path) == ()
    [found] = host._labels("auto", tmp_path, tmp_path)
    assert not found.problem.fatal
    (tmp_path / "config").write_text("SELINUXTYPE=default\n")
    contexts = tmp_path / "default" / "contexts"
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text('process = "u:r:p_t:s0"\nfile = "u:object_r:f_t:s0"\n')
    assert host._labels("auto", tmp_path, tmp_path) == ()


def test_a_handler_that_forgeoned_would_not_start_with_is_told(tmp_path: Path) -> None:
    config = Config(handlers_dir=str(tmp_path))
    assert host._handlers(config) == ()
    (tmp_path / "gpu.toml").write_text('engine = "nativ"\n')
    (found,) = host._handlers(config)
    assert "handler gpu: engine: no engine 'nativ' is installed" in found.problem.what
    assert found.problem.fatal
