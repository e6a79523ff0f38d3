"""Ends are learned from exit files, and from pidfds where no file comes."""

import errno
import os
import queue
import subprocess
import time
from pathlib import Path

import pytest

from forgeone_shim.kernel.procs import Pidfd, open_process
from forgeone_shim.shim import exits
from forgeone_shim.shim.exits import LOST_CODE, Exit, ExitWatch, read_exit

Found = queue.Queue[tuple[str, Exit]]


@pytest.fixture
def found(tmp_path: Path) -> "tuple[Found, ExitWatch]":
    seen: Found = queue.Queue()
    watch = ExitWatch(tmp_path, lambda id_, end: seen.put((id_, end)))
    yield seen, watch
    watch.close()


def test_an_exit_file_renamed_into_place_is_seen_with_its_time(
    tmp_path: Path, found: "tuple[Found, ExitWatch]"
) -> None:
    (tmp_path.parent / "part").write_text("137")
    (tmp_path.parent / "part").rename(tmp_path / "c1")
    id_, end = found[0].get(timeout=5)
    assert (id_, end.code, end.lost) == ("c1", 137, False)
    assert end.at == (tmp_path / "c1").stat().st_mtime_ns


def test_a_process_that_ends_without_an_exit_file_is_reported_lost(
    found: "tuple[Found, ExitWatch]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "GRACE", 0.05)
    child = subprocess.Popen(["sleep", "60"])
    found[1].follow("c2", child.pid)
    child.kill()
    id_, end = found[0].get(timeout=5)
    child.wait()
    assert (id_, end.code, end.lost) == ("c2", LOST_CODE, True)


def test_an_exit_file_that_comes_within_the_grace_period_wins(tmp_path: Path, found: "tuple[Found, ExitWatch]") -> None:
    child = subprocess.Popen(["true"])
    found[1].follow("c3", child.pid)
    child.wait()
    (tmp_path / "c3").write_text("7")
    id_, end = found[0].get(timeout=5)
    assert (id_, end.code, end.lost) == ("c3", 7, False)
    assert found[0].empty()


def test_what_is_forgotten_is_not_reported(found: "tuple[Found, ExitWatch]", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "GRACE", 0.01)
    child = subprocess.Popen(["sleep", "60"])
    found[1].follow("c4", child.pid)
    found[1].forget("c4")
    found[1].forget("c4")
    child.kill()
    child.wait()
    with pytest.raises(queue.Empty):
        found[0].get(timeout=0.2)


def test_a_damaged_exit_file_is_an_unknown_end(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("banana")
    end = read_exit(tmp_path, "c")
    assert end is not None
    assert (end.code, end.lost) == (LOST_CODE, True)
    assert read_exit(tmp_path, "missing") is None


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = ExitWatch(tmp_path, lambda *_: None)
    watch.follow("a", os.getpid())
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_supervisor_that_lives_is_given_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "GRACE", 0.05)
    seen: Found = queue.Queue()
    alive = [True]
    watch = ExitWatch(
        tmp_path, lambda id_, end: seen.put((id_, end)), lambda _: Pidfd(os.getpid()) if alive[0] else None
    )
    child = subprocess.Popen(["true"])
    child.wait()
    watch.follow("c5", child.pid)
    with pytest.raises(queue.Empty):
        seen.get(timeout=0.3)
    alive[0] = False
    assert seen.get(timeout=5)[1].lost
    watch.close()


def test_a_supervisor_is_known_by_its_pid_file_and_command_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        exits.find_supervisor(tmp_path, "c6")
    with subprocess.Popen(["sleep", "60"]) as child:
        # In the midst of exec(2) a process has no command line yet.
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.001)
        (tmp_path / "conmon.pid").write_text(str(child.pid))
        held = exits.find_supervisor(tmp_path, "60")
        assert held is not None
        held.close()
        assert exits.find_supervisor(tmp_path, "c6") is None
        child.kill()
    assert exits.find_supervisor(tmp_path, "60") is None
    (tmp_path / "conmon.pid").write_text("banana")
    assert exits.find_supervisor(tmp_path, "60") is None


def test_a_supervisor_that_cannot_be_looked_at_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conmon.pid").write_text(str(os.getpid()))
    opened, open_ = [], os.open

    def scarce(path: str, flags: int) -> int:
        opened.append(path)
        if path.endswith("cmdline"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_(path, flags)

    monkeypatch.setattr(os, "open", scarce)
    with pytest.raises(OSError, match="Too many open files"):
        exits.find_supervisor(tmp_path, "python")
    assert opened[-1].endswith("cmdline")


def watched(tmp_path: Path, supervisor: "subprocess.Popen[bytes]") -> "tuple[queue.Queue[str], ExitWatch]":
    orphans: queue.Queue[str] = queue.Queue()
    watch = ExitWatch(tmp_path, lambda *_: None, lambda _: open_process(supervisor.pid), orphans.put)
    return orphans, watch


def test_a_supervisor_that_dies_before_its_container_leaves_an_orphan(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as supervisor:
        orphans, watch = watched(tmp_path, supervisor)
        watch.follow("c7", os.getpid())
        supervisor.kill()
        assert orphans.get(timeout=5) == "c7"
        watch.close()


def test_a_supervisor_that_is_dead_already_leaves_an_orphan(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as supervisor:
        supervisor.wait()
        orphans, watch = watched(tmp_path, supervisor)
        watch.follow("c8", os.getpid())
        assert orphans.get(timeout=5) == "c8"
        watch.close()


def test_a_supervisor_that_goes_after_its_container_leaves_none(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as supervisor:
        orphans, watch = watched(tmp_path, supervisor)
        for name in ("written", "forgotten"):
            watch.follow(name, os.getpid())
        watch.forget("forgotten")
        child = subprocess.Popen(["sleep", "60"])
        watch.follow("dead", child.pid)
        child.kill()
        child.wait()
        (tmp_path / "written").write_text("0")
        supervisor.kill()
        with pytest.raises(queue.Empty):
            orphans.get(timeout=0.3)
        watch.close()


@pytest.mark.parametrize("first", ["container", "supervisor"])
def test_nothing_is_waited_for_that_a_dead_supervisor_cannot_write(tmp_path: Path, first: str) -> None:
    seen: Found = queue.Queue()
    with subprocess.Popen(["sleep", "60"]) as supervisor, subprocess.Popen(["sleep", "60"]) as child:
        pid = supervisor.pid
        watch = ExitWatch(tmp_path, lambda id_, end: seen.put((id_, end)), lambda _: open_process(pid))
        watch.follow("c10", child.pid)
        begun = time.monotonic()
        for process in (child, supervisor) if first == "container" else (supervisor, child):
            process.kill()
            process.wait()
        id_, end = seen.get(timeout=5)
        assert (id_, end.code, end.lost) == ("c10", LOST_CODE, True)
        assert time.monotonic() - begun < exits.GRACE / 2
        watch.close()


def test_an_engine_without_supervisors_leaves_no_orphans(tmp_path: Path) -> None:
    orphans: queue.Queue[str] = queue.Queue()
    watch = ExitWatch(tmp_path, lambda *_: None, lambda _: exits.find_supervisor(tmp_path, "c9"), orphans.put)
    watch.follow("c9", os.getpid())
    with pytest.raises(queue.Empty):
        orphans.get(timeout=0.2)
    watch.close()


def test_no_descriptor_of_a_supervisor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with subprocess.Popen(["sleep", "60"]) as supervisor:
        _, watch = watched(tmp_path, supervisor)
        for name in ("a", "b", "a"):
            watch.follow(name, os.getpid())
        watch.forget("a")
        watch.close()
        supervisor.kill()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_goes_wrong_for_one_end_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "_AGAIN", 0.01)
    seen: Found = queue.Queue()
    failures = [OSError(24, "Too many open files"), RuntimeError("no thread")]

    def note(id_: str, end: Exit) -> None:
        if failures:
            raise failures.pop()
        seen.put((id_, end))

    watch = ExitWatch(tmp_path, note)
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    found = {seen.get(timeout=5)[0], seen.get(timeout=5)[0]}
    assert found <= {"a", "b"}
    while found != {"a", "b"}:
        found.add(seen.get(timeout=5)[0])
    watch.close()
