"""Plugins as programs: what they are told, what becomes of what they answer, and how they are ended."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.network.cni import execute
from forgeone_shim.network.cni.execute import Program, find_program
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation

CONFIG = {"cniVersion": "1.0.0", "name": "net", "type": "fake"}


def plugin(folder: Path, script: str, name: str = "fake") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


def invocation(folder: Path, command: Command = Command.ADD, **changes: object) -> Invocation:
    values: dict[str, object] = {
        "command": command,
        "config": CONFIG,
        "container_id": "pod1",
        "netns": "/run/ns/net",
        "ifname": "eth0",
        "args": {"IgnoreUnknown": "1", "K8S_POD_NAME": "web"},
        "path": (str(folder),),
    }
    return Invocation(**(values | changes))  # type: ignore[arg-type]


def test_a_plugin_is_told_all_by_environment_and_standard_input(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", f'env > {tmp_path}/env; cat > {tmp_path}/stdin; echo \'{{"cniVersion":"1.0.0"}}\'')
    assert Program("fake")(invocation(tmp_path / "bin"), NEVER) == {"cniVersion": "1.0.0"}
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    told = {key: value for key, value in env.items() if key.startswith("CNI_")}
    assert told == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "pod1",
        "CNI_NETNS": "/run/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
        "CNI_PATH": str(tmp_path / "bin"),
    }
    assert env["PATH"]
    assert json.loads((tmp_path / "stdin").read_text()) == CONFIG


def test_a_configuration_larger_than_a_pipe_is_read_whole(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", "wc -c >&2; echo '{}'; exit 0")
    big = {**CONFIG, "filler": "x" * 300_000}
    Program("fake")(invocation(tmp_path / "bin", config=big), NEVER)


def test_what_is_forgeoneds_own_is_not_inherited() -> None:
    inherited = {"PATH": "/bin", "NOTIFY_SOCKET": "/n", "FORGEONE_ROOT": "/r", "CNI_ARGS": "old", "HTTP_PROXY": "p"}
    env = execute.environment(invocation(Path("/bin"), Command.GC, container_id="", netns="", ifname=""), inherited)
    assert env == {"PATH": "/bin", "HTTP_PROXY": "p", "CNI_COMMAND": "GC", "CNI_PATH": "/bin"}


def test_the_error_a_plugin_tells_arrives_with_code_details_and_what_it_said(tmp_path: Path) -> None:
    error = '{"cniVersion":"1.0.0","code":11,"msg":"no address left","details":"range 10.0.0.0/30"}'
    plugin(tmp_path / "bin", f"echo '{error}'; echo 'see the log' >&2; exit 1")
    with pytest.raises(CniError) as caught:
        Program("fake")(invocation(tmp_path / "bin"), NEVER)
    assert (caught.value.code, caught.value.message) == (11, "fake: no address left")
    assert "range 10.0.0.0/30; see the log" in str(caught.value)


def test_a_plugin_that_fails_without_json_is_quoted(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", "echo 'panic: nil map' >&2; exit 2")
    with pytest.raises(CniError, match="exit code 2: panic: nil map"):
        Program("fake")(invocation(tmp_path / "bin"), NEVER)


@pytest.mark.parametrize("answer", ["", "{", "[]", "null", "hello"])
def test_an_answer_that_is_no_object_is_refused(tmp_path: Path, answer: str) -> None:
    plugin(tmp_path / "bin", f"echo '{answer}'")
    with pytest.raises(CniError) as caught:
        Program("fake")(invocation(tmp_path / "bin"), NEVER)
    assert caught.value.code == execute.BAD_ANSWER


def test_other_commands_need_no_answer(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", "echo chatter")
    assert Program("fake")(invocation(tmp_path / "bin", Command.DEL), NEVER) == {}


def test_an_answer_without_end_is_cut_and_refused(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", "head -c 3000000 /dev/zero")
    with pytest.raises(CniError, match="more than 1 MiB"):
        Program("fake")(invocation(tmp_path / "bin"), NEVER)


def test_a_deadline_kills_the_plugin_and_what_it_started(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", f"sleep 300 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(DeadlineExceeded, match="fake ran ADD"):
        Program("fake")(invocation(tmp_path / "bin"), Deadline.after(0.5))
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_caller_that_goes_away_ends_the_plugin_at_once(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", "exec sleep 300")
    deadline = Deadline.after(100)
    threading.Timer(0.3, deadline.abandon).start()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        Program("fake")(invocation(tmp_path / "bin"), deadline)
    assert time.monotonic() - began < 10


def test_a_program_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = plugin(tmp_path / "bin", "echo '{}'")
    content = Path("/bin/busybox").read_bytes() if Path("/bin/busybox").exists() else Path("/bin/true").read_bytes()
    path.write_bytes(content)
    writer = path.open("r+b")
    threading.Timer(0.4, writer.close).start()
    # Executed, it is a program that knows no such applet: it is enough that it ran.
    with pytest.raises(CniError) as caught:
        Program("fake")(invocation(tmp_path / "bin"), Deadline.after(20))
    assert caught.value.code == execute.BAD_ANSWER


def test_a_missing_plugin_names_the_folders(tmp_path: Path) -> None:
    with pytest.raises(CniError, match=str(tmp_path)) as caught:
        Program("nowhere")(invocation(tmp_path), NEVER)
    assert caught.value.code == execute.NO_SUCH_PLUGIN


@pytest.mark.parametrize("name", ["", ".", "..", "../bin/sh", "/bin/sh", "a\0b"])
def test_a_type_that_leads_out_of_its_folder_is_not_found(name: str) -> None:
    assert find_program(name, ("/usr/lib",)) is None


def test_the_first_folder_with_an_executable_wins(tmp_path: Path) -> None:
    second = plugin(tmp_path / "b", "")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "fake").write_text("not executable")
    assert find_program("fake", (str(tmp_path / "gone"), str(tmp_path / "a"), str(tmp_path / "b"))) == str(second)


def test_a_plugin_is_asked_for_its_versions(tmp_path: Path) -> None:
    plugin(
        tmp_path / "bin",
        '[ "$CNI_COMMAND" = VERSION ] && echo \'{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}\'',
    )
    assert execute.versions("fake", (str(tmp_path / "bin"),), NEVER) == ("0.4.0", "1.0.0")


def test_nothing_stays_open(tmp_path: Path) -> None:
    plugin(tmp_path / "bin", "echo '{}'")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Program("fake")(invocation(tmp_path / "bin"), NEVER)
    assert len(os.listdir("/proc/self/fd")) == before


def test_orphans_that_the_kernel_holds_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        """Stands for a process that the kernel does not let go of."""

        def __init__(self, pid: int) -> None:
            self.pid = pid

        def __enter__(self) -> Held:
            return self

        def __exit__(self, *_: object) -> None:
            closed.append(self.pid)

        def send(self, number: int) -> bool:
            order.append(f"kill {self.pid}")
            return True

        def wait(self, timeout: float) -> bool:
            order.append(f"wait {self.pid}")
            time.sleep(timeout)
            return False

    order: list[str] = []
    closed: list[int] = []
    monkeypatch.setattr(execute, "_KILLED_SECONDS", 0.1)
    monkeypatch.setattr(execute, "_processes", lambda: [1, 2, 3])
    monkeypatch.setattr(execute, "_orphan", lambda *_: True)
    monkeypatch.setattr(execute, "open_process", Held)
    begun = time.monotonic()
    execute.end_orphans({"x"})
    assert time.monotonic() - begun < execute._KILL_ROUNDS * 0.1 + 0.3
    assert order[:6] == ["kill 1", "kill 2", "kill 3", "wait 1", "wait 2", "wait 3"]
    assert len(closed) == len(order) / 2


def test_what_an_earlier_process_left_running_for_a_pod_is_ended_and_nothing_else() -> None:
    mine = {"PATH": os.environ["PATH"], "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "orphan-of-a-test"}
    orphan = subprocess.Popen(["sleep", "100"], env=mine)
    other = subprocess.Popen(["sleep", "100"], env={**mine, "CNI_CONTAINERID": "orphan-of-a-test-2"})
    try:
        until = time.monotonic() + 10
        while b"CNI_COMMAND" not in Path(f"/proc/{orphan.pid}/environ").read_bytes():
            assert time.monotonic() < until
        execute.end_orphans({"orphan-of-a-test"})
        assert orphan.wait(10) == -9
        assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()
