"""conmon's command line, crun's words, lookups, the sealed program, and what a host may lack."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engines.native import build, checks, conmon, execute, lookup
from engines.native.conmon import Programs
from engines.native.sealed import SealedProgram
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput, NotFound
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.shim import contract
from tests.unit.native.conftest import PlanMaker, make_host


@pytest.fixture
def programs() -> Programs:
    return Programs(
        crun=SealedProgram("/nonexistent/crun"),
        conmon="/usr/bin/conmon",
        init="/usr/bin/catatonit",
        crun_arguments=("--root=/r",),
        environment={},
    )


def test_conmon_is_told_where_everything_is(plan: PlanMaker, programs: Programs) -> None:
    words = " ".join(conmon.arguments(plan(), programs, "/var/log/pods/p/c/0.log"))
    assert "-r /nonexistent/crun --runtime-arg=--root=/r -b /run/f/containers/c1" in words
    assert "--exit-dir /run/f/exits" in words
    assert "-l k8s-file:/var/log/pods/p/c/0.log" in words
    assert " -t" not in words
    assert " -i" not in words


def test_a_terminal_and_input_are_asked_for(plan: PlanMaker, programs: Programs) -> None:
    words = conmon.arguments(plan(tty=True, stdin=True), programs, "")
    assert {"-t", "-i", "--leave-stdin-open"} <= set(words)
    assert "--leave-stdin-open" not in conmon.arguments(plan(stdin=True, stdin_once=True), programs, "")


def test_no_log_path_is_no_log(plan: PlanMaker, programs: Programs) -> None:
    words = conmon.arguments(plan(log_path=""), programs, "")
    assert words[words.index("-l") + 1] == "none"


def test_a_log_that_must_not_grow_too_large_is_conmons_to_cut(plan: PlanMaker, programs: Programs) -> None:
    assert "--log-size-max=70000" in conmon.arguments(plan(), programs, "/l", 70000)


def test_a_log_path_that_conmon_would_cut_is_refused(plan: PlanMaker, programs: Programs) -> None:
    with pytest.raises(InvalidInput, match="log_path"):
        conmon.arguments(plan(log_path="/var/log/a:b.log"), programs, "/var/log/a:b.log")


def test_crun_s_words_become_the_right_kind_of_error() -> None:
    missing = "error: executable file `x` not found in $PATH: No such file or directory"
    assert isinstance(conmon.create_error("c", missing), InvalidInput)
    assert "`x` not found" in str(conmon.create_error("c", missing))
    assert isinstance(conmon.create_error("c", "mount `proc`: Permission denied"), InternalError)
    assert isinstance(execute.exec_error("c", "exec: Exec format error"), InvalidInput)
    assert isinstance(execute.exec_error("c", "container `c` does not exist"), NotFound)
    assert isinstance(execute.exec_error("c", "something else"), InternalError)


def test_only_a_conmon_of_that_container_is_its_supervisor(tmp_path: Path) -> None:
    assert contract.supervisor(str(tmp_path), "c1") is None
    other = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / conmon.CONMON_PIDFILE).write_text(str(other.pid))
        assert contract.supervisor(str(tmp_path), "c1") is None
        contract.stop(str(tmp_path), "c1", 0)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_log_without_a_supervisor_is_not_reopened(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no supervisor"):
        conmon.reopen_log(str(tmp_path), "c1", str(tmp_path / "0.log"))
    conmon.reopen_log(str(tmp_path), "c1", "")


@pytest.fixture
def root(tmp_path: Path) -> str:
    for place in ("bin", "opt"):
        (tmp_path / place).mkdir()
    (tmp_path / "bin" / "ls").write_text("")
    (tmp_path / "opt" / "tool").symlink_to("/bin/ls")
    (tmp_path / "opt" / "dangling").symlink_to("/gone")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("command", "path", "cwd", "there"),
    [
        ("ls", "PATH=/opt:/bin", "/", True),
        ("ls", "PATH=/opt", "/", False),
        ("ls", "X=1", "/", True),
        ("ls", "PATH=bin", "/", True),
        ("/bin/ls", "PATH=", "/", True),
        ("./tool", "PATH=", "/opt", True),
        ("tool", "PATH=/opt", "/", True),
        ("dangling", "PATH=/opt", "/", False),
        ("/bin/ls/x", "PATH=", "/", False),
        ("../../../../../../../../bin/ls", "PATH=", "/opt", True),
    ],
)
def test_a_command_is_looked_for_as_execvp_does(root: str, command: str, path: str, cwd: str, there: bool) -> None:
    assert lookup.command_exists(root, command, [path], cwd) is there


def test_a_root_that_cannot_be_seen_decides_nothing() -> None:
    assert lookup.command_exists("/nonexistent", "ls", [], "/")


def test_a_sealed_program_runs_cannot_be_written_and_follows_the_file(tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.write_bytes(Path("/bin/echo").read_bytes())
    program.chmod(0o755)
    sealed = SealedProgram(str(program))
    first = sealed.path()
    assert first.startswith("/proc/")
    assert subprocess.run([first, "hi"], capture_output=True, check=True).stdout == b"hi\n"
    assert sealed.path() == first
    with pytest.raises(OSError, match=r"Text file busy|not permitted"), open(first, "r+b", buffering=0) as file:
        file.write(b"x")
    program.write_bytes(Path("/bin/true").read_bytes())
    assert subprocess.run([sealed.path(), "hi"], capture_output=True, check=True).stdout == b""


def test_what_cannot_be_sealed_is_run_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert SealedProgram(str(script)).path() == str(script)
    assert SealedProgram("/nonexistent").path() == "/nonexistent"
    assert not SealedProgram("")


@pytest.mark.parametrize(
    ("text", "version"),
    [("crun version 1.8.1\ncommit: f8", (1, 8, 1)), ("conmon version 2.1.6", (2, 1, 6)), ("", ()), ("version x", ())],
)
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    assert checks.parse_version(text) == version


def test_missing_programs_are_problems_with_a_command_that_installs_them() -> None:
    found = checks.problems("/no/crun", "/no/conmon", "/no/init", make_host())
    assert [problem.what for problem in found[:3]] == [
        f"/no/{name} is not installed" for name in ("crun", "conmon", "init")
    ]
    assert all("apt-get install" in problem.fix for problem in found[:3])


def test_hugetlb_only_on_the_unified_side_of_a_hybrid_host_is_a_problem() -> None:
    base = make_host(Mode.HYBRID)
    groups = base.cgroups
    changed = type(groups)(
        mode=groups.mode,
        driver=groups.driver,
        v1={name: mount for name, mount in groups.v1.items() if name != "hugetlb"},
        unified=groups.unified,
        v2_controllers=frozenset({"hugetlb"}),
    )
    found = checks.problems("/bin/true", "/bin/true", "/bin/true", make_host(Mode.HYBRID, cgroups=changed))
    assert any("mount -t cgroup -o hugetlb" in problem.fix and problem.fatal for problem in found)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InvalidInput, match="fancy"):
        build({"native": {"fancy": 1}, "state": "/run/x"})


def test_an_engine_is_built_from_plain_data(tmp_path: Path) -> None:
    engine = build({"native": {"cgroup_driver": "cgroupfs"}, "state": str(tmp_path)})
    assert engine.name == "native"
    assert engine.features().supplemental_groups_policy
    assert os.listdir(tmp_path) == []


def test_an_apparmor_host_without_its_parser_is_told_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = checks.problems("/bin/true", "/bin/true", "/bin/true", make_host(apparmor=True))
    assert any("apparmor_parser" in problem.what and not problem.fatal for problem in found)
    assert not any("apparmor" in problem.what for problem in checks.problems("true", "true", "true", make_host()))
