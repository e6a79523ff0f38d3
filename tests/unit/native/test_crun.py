from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engines.base import Live, LiveState
from engines.native.crun import Containers
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel import procs


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    return Containers(tmp_path / "crun")


def remember(containers: Containers, pid: int, started: int) -> Path:
    folder = containers.directory("c")
    folder.mkdir(parents=True)
    (folder / "status").write_text(json.dumps({"pid": pid, "process-start-time": started, "cgroup-path": "/x"}))
    return folder


def own_start() -> int:
    found = procs.stat(os.getpid())
    assert found is not None
    return found.started


def test_what_crun_does_not_know_is_missing(containers: Containers) -> None:
    assert containers.look("c", None) == Live(LiveState.MISSING)
    assert containers.first_process("c") is None
    containers.forget("c")


def test_a_live_process_is_created_until_its_fifo_is_gone(containers: Containers, tmp_path: Path) -> None:
    folder = remember(containers, os.getpid(), own_start())
    os.mkfifo(folder / "exec.fifo")
    assert containers.look("c", None) == Live(LiveState.CREATED, os.getpid())
    (folder / "exec.fifo").unlink()
    assert containers.look("c", None).state is LiveState.RUNNING
    paused = dict.fromkeys(("1\n", "FROZEN\n", "FREEZING\n"), LiveState.PAUSED)
    for text, state in {**paused, "0\n": LiveState.RUNNING, "THAWED\n": LiveState.RUNNING}.items():
        (tmp_path / "freeze").write_text(text)
        assert containers.look("c", str(tmp_path / "freeze")).state is state


def test_a_reused_pid_is_a_stopped_container(containers: Containers) -> None:
    remember(containers, os.getpid(), own_start() + 1)
    assert containers.look("c", None) == Live(LiveState.STOPPED)
    assert containers.first_process("c") is None


def test_release_wakes_the_reader_once(containers: Containers) -> None:
    folder = remember(containers, os.getpid(), own_start())
    os.mkfifo(folder / "exec.fifo")
    reader = os.open(folder / "exec.fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert containers.release("c")
    assert os.read(reader, 10) == b"\0"
    assert not containers.release("c")
    os.close(reader)


def test_release_of_a_dead_container_says_so(containers: Containers) -> None:
    os.mkfifo(remember(containers, 1, 1) / "exec.fifo")
    with pytest.raises(BrokenPipeError):
        containers.release("c")


def test_release_does_not_follow_a_link(containers: Containers, tmp_path: Path) -> None:
    folder = remember(containers, 1, 1)
    (tmp_path / "victim").write_text("x")
    (folder / "exec.fifo").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        containers.release("c")
    assert (tmp_path / "victim").read_text() == "x"


def test_a_status_file_of_another_layout_is_an_error(containers: Containers) -> None:
    folder = remember(containers, 1, 1)
    for text in ("", "[]", "{}", '{"pid": "x"}'):
        (folder / "status").write_text(text)
        with pytest.raises(InternalError, match="not as known"):
            containers.status("c")
